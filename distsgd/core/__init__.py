"""The numerics and the decisions: numpy only, no input or output, no clock."""
