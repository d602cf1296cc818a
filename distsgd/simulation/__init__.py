"""Simulated fleets on a virtual clock."""
