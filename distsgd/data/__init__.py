"""Datasets: fetched, verified, kept as Arrow shards, and read without copying."""
