"""Audit, replay and verification: what the journal of a run proves."""
