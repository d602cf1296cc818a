"""Audit, replay and verification: whether a run agrees with its journal, its plan and the formulas.

They find damage and faults. A run folder that was forged as a whole is told by a digest that was
kept elsewhere alone.
"""
