"""Measuring: ours beside others, on the same data, in one session, as ratios."""
