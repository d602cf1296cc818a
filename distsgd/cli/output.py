"""How results are shown: a table for people, one JSON object for machines."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import typer

__all__ = ["JsonFlag", "count", "percent", "print_json", "print_pairs", "print_table", "say"]

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, all else on stderr.")
]


def say(text: str) -> None:
    """A line about what is going on, on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_json(content: Any) -> None:
    """One JSON object on stdout; numbers that JSON does not know become null."""
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        content = dataclasses.asdict(content)
    print(json.dumps(_plain(content), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def percent(share: float) -> str:
    """0.4132 as 41.3 %; - for that of nothing (NaN)."""
    if math.isnan(share):
        return "-"
    return f"{share:.1%}".replace("%", " %")


def count(number: float) -> str:
    """50000 as 50,000."""
    return f"{number:,.0f}"


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """A table on stdout; the first column is text, the others numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, box=SIMPLE_HEAD, title_justify="left")
    for number, heading in enumerate(headings):
        first = number == 0  # a name, which may be copied
        justify: Literal["left", "right"] = "left" if first else "right"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=first)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 110))
    console.print(table)


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line, never folded: they may be copied."""
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"  {name:<{width}}  {value}")
