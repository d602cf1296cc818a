"""Datasets that lie elsewhere: object stores and web servers, cached on each node."""
