"""What was measured, round by round, and what it comes to: medians and ratios."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

__all__ = ["Measurement", "ratio"]


@dataclass(kw_only=True)
class Measurement:
    """All rounds of one contender.

    Attributes:
        name: of the contender.
        values: round -> what was found, in the contender's unit.
        details: what else the last round had to say.
        skipped: why it was not measured, or not in every round; empty if it was.
    """

    name: str
    values: dict[int, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""

    @property
    def median(self) -> float | None:
        """Median over the rounds; None if there is none."""
        return median(self.values.values()) if self.values else None

    @property
    def least(self) -> float | None:
        """The least of the rounds."""
        return min(self.values.values(), default=None)

    @property
    def most(self) -> float | None:
        """The most of the rounds."""
        return max(self.values.values(), default=None)


def ratio(measured: Mapping[str, Measurement], name: str, baseline: str) -> float | None:
    """How many times the baseline: the median of the ratios within each round.

    Machines drift; what is measured in one round is measured close together. None if no round
    has both.
    """
    if name not in measured or baseline not in measured:
        return None
    ours, theirs = measured[name].values, measured[baseline].values
    ratios = [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys())]
    return median(ratios) if ratios else None
