"""Nodes one can log in to, joined to a Ray cluster; tokens, TLS and jobs."""
