"""The whole lecture on one page."""
