"""Audit, replay, recovery and verification: what the journal of a run proves."""
