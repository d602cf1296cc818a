"""The run folder: everything a run is can be read from it."""
