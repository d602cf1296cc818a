"""Checks of a machine, each a function that yields findings; `distsgd.advice.doctor` runs them."""
