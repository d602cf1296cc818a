"""Advice about a machine: what to train with on it, from short measurements."""
