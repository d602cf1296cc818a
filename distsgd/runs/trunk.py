"""What a fork shares with the runs before it, as curves: each ancestor's part, up to the next fork.

A piece is a dict of `name`, `folder` (of the ancestor, there or not), `update` (where it ends), and
the columns `progress` and `epochs` of `History`. Where the ancestor went on, the last row of a
piece is interpolated at the fork, so that the branches begin on the ancestor's own curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["START", "Columns", "Place", "cut", "joined", "place_at"]

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Place:
    """A place on the axes of a run.

    Attributes:
        step: updates.
        epoch: with its fraction.
        seconds: of steps, those of its ancestors included.
    """

    step: int
    epoch: float
    seconds: float


START = Place(0, 0.0, 0.0)


def place_at(start: Place, progress: Columns, epochs: Columns, steps: Sequence[int]) -> list[Place]:
    """Where updates are on the axes of a run, by its metrics around them.

    Args:
        start: where the run begins.
        progress: as in `History`.
        epochs: likewise.
        steps: the updates.
    """
    known = {start.step: (start.epoch, start.seconds)}
    for columns in (progress, epochs):
        for step, epoch, seconds in zip(
            columns["step"], columns["epoch"], columns["seconds"], strict=True
        ):
            known[step] = float(epoch), float(seconds)
    order = sorted(known)
    where = np.interp(steps, order, [known[step][0] for step in order]).tolist()
    times = np.interp(steps, order, [known[step][1] for step in order]).tolist()
    return [
        Place(step, round(epoch, 6), seconds)
        for step, epoch, seconds in zip(steps, where, times, strict=True)
    ]


def cut(columns: Columns, place: Place) -> Columns:
    """The rows up to a place, with one at the place itself if the columns reach it."""
    steps = columns["step"]
    kept = sum(1 for step in steps if step <= place.step)
    found = {name: column[:kept] for name, column in columns.items()}
    if not kept or kept == len(steps) or steps[kept - 1] == place.step:
        return found
    share = (place.step - steps[kept - 1]) / (steps[kept] - steps[kept - 1])
    known = {"step": place.step, "epoch": place.epoch, "seconds": place.seconds}
    for name, column in columns.items():
        before, after = column[kept - 1], column[kept]
        between = None if before is None or after is None else before + share * (after - before)
        found[name].append(known.get(name, between))
    return found


def joined(pieces: Sequence[Mapping[str, Any]], table: str, own: Columns) -> Columns:
    """The columns of all pieces of a history, and then its own; each update at most once.

    Args:
        pieces: the trunk.
        table: "progress" or "epochs".
        own: columns of the run itself.
    """
    found: Columns = {name: [] for name in own}
    for columns in (*(piece[table] for piece in pieces), own):
        steps, last = columns.get("step", []), found.get("step", [])
        first = sum(1 for step in steps if last and step <= last[-1])
        for name, column in found.items():
            column += columns.get(name, [None] * len(steps))[first:]
    return found
