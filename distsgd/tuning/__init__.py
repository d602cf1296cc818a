"""Searches for settings, and studies of many trainings: spaces, methods, the study folder."""
