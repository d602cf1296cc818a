"""Figures of runs: as data, which the page and matplotlib draw alike."""
