"""The benchmark: distsgd beside other systems on the same data, in one session, as ratios."""
