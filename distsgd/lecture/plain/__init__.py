"""The lecture's own loops and formulas, written down as on the blackboard."""
