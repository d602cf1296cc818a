"""How scripts print what they measure: Markdown tables, below the machine and the versions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from distsgd.bench.environment import busy_cores, environment

Figures = Sequence[float]
"""One figure a round."""


def print_environment() -> None:
    """The processor, the cores and those that are busy, and the versions of what computes."""
    found = {**environment(), "busy cores": f"{busy_cores():.2f}"}
    print("; ".join(f"{name} {value}" for name, value in found.items()), end="\n\n")


class Table:
    """Prints a row as soon as it is known.

    Args:
        first: the heading of the column of names.
        columns: the headings of the others.
    """

    def __init__(self, first: str, *columns: str) -> None:
        print(f"| {' | '.join((first, *columns))} |")
        print(f"| --- |{' ---: |' * len(columns)}", flush=True)

    def row(self, name: object, *cells: object) -> None:
        """Floats are printed with four significant digits, None as an empty cell."""
        print(f"| {' | '.join((str(name), *map(_cell, cells)))} |", flush=True)


class Comparison:
    """A table of figures beside a peer's, and beside a limit, of the same rounds.

    Args:
        first: the heading of the column of names.
        unit: of all figures; part of the headings.
        ours: what is measured.
        peer: what it is compared with, if anything.
        limit: what nothing on this machine could exceed, if that is known.
    """

    def __init__(
        self, first: str, unit: str, *, ours: str, peer: str = "", limit: str = ""
    ) -> None:
        self._peer, self._limit = peer, limit
        columns = [f"{ours}, {unit}"]
        columns += [peer, f"times {peer}"] if peer else []
        columns += [limit, f"times {limit}"] if limit else []
        self._table = Table(first, *columns)

    def row(self, name: str, ours: Figures, peer: Figures = (), limit: Figures = ()) -> None:
        """Medians, with their range where there are several; ratios are taken within a round."""
        cells: list[str | None] = [spread(ours)]
        for wanted, others in ((self._peer, peer), (self._limit, limit)):
            if wanted and others:
                ratios = [one / other for one, other in zip(ours, others, strict=True)]
                cells += [spread(others), spread(ratios)]
            elif wanted:
                cells += [None, None]
        self._table.row(name, *cells)


def spread(values: Figures) -> str:
    """The median and the range; of ten values or more, the range of the middle 80 %."""
    middle, low, high = statistics.median(values), min(values), max(values)
    if len(values) >= 10:
        low, *_, high = statistics.quantiles(values, n=10)
    return _cell(middle) if len(values) == 1 else f"{_cell(middle)} ({_cell(low)} to {_cell(high)})"


def _cell(value: object) -> str:
    if isinstance(value, float):
        digits = f"{value:.4g}"
        return f"{float(digits):,.0f}" if abs(value) >= 1000 else digits
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
