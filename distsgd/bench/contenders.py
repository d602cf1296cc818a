"""A contender: one thing that is measured; and which of them the user wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from distsgd.errors import UsageError

__all__ = ["GFLOPS", "GIGABYTES", "IMAGES", "SECONDS", "Contender", "choose"]

IMAGES, GFLOPS, GIGABYTES, SECONDS = "images/s", "GFLOP/s", "GB/s", "s"
"""Units."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of a table.

    Attributes:
        name: what `--only` calls it.
        what: what it is, for people.
        module: run as ``python -m MODULE``; measures, and says what it found.
        unit: of what it says.
        settings: what the module is told.
        batch: global minibatch, 0 where there is none.
        needs: package that has to be installed, by the name it is imported by.
        shares: contenders with the same word that follow one another share a process.
    """

    name: str
    what: str
    module: str
    unit: str = IMAGES
    settings: dict[str, Any] = field(default_factory=dict)
    batch: int = 0
    needs: str = ""
    shares: str = ""


def choose(
    only: str | None, usual: Sequence[Contender], others: Sequence[Contender]
) -> list[Contender]:
    """Those that `--only` names, in their usual order.

    Args:
        only: names by commas, or what several names begin with ("inline" for inline-64,
            inline-256, ...); None for the usual ones.
        usual: what is measured if nothing is said, and what first words choose from.
        others: what may be named in full besides.

    Raises:
        UsageError: there is nothing of a name.
    """
    if only is None:
        return list(usual)
    known = {contender.name: contender for contender in (*usual, *others)}
    chosen: set[str] = set()
    for word in filter(None, (part.strip() for part in only.split(","))):
        begun = {one.name for one in usual if one.name.startswith(f"{word}-")}
        found = {word} if word in known else begun
        if not found:
            names = ", ".join(one.name for one in usual)
            raise UsageError(f"--only: there is no {word}", f"There are: {names}")
        chosen |= found
    if not chosen:
        raise UsageError("--only names nothing", "Give names by commas: --only numpy,inline")
    return [contender for name, contender in known.items() if name in chosen]
