"""The command line: parse, call, render. No logic."""

import time

__all__ = ["BEGAN"]

BEGAN = time.perf_counter()
"""When this process began to load the command line."""
