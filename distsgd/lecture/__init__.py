"""The lecture on optimisation: its strategies, numbers and figures, as functions."""
