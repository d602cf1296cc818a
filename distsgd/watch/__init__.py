"""Runs in a browser: a live page, and the same page frozen into one file."""
