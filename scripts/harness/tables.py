"""How scripts print what they measured: a Markdown table, below the machine and the versions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from distsgd.bench.environment import environment


def print_environment() -> None:
    """One line: the processor, the cores, and the versions of all that computes."""
    print("; ".join(f"{name} {value}" for name, value in environment().items()), end="\n\n")


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


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def spread(values: Sequence[float]) -> str:
    """The median, and the range."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
