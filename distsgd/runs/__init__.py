"""The run folder and its files: everything about a run can be read from it."""
