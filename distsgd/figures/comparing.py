"""Runs beside each other: those that differ in the seed alone are one group, and what differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distsgd.runs.history import History
from distsgd.runs.listing import differing_settings

__all__ = ["Curve", "Differences", "Group", "band", "differing", "groups", "labels"]

_BESIDE = ("seed",)
"""Settings in which the runs of a group may differ."""

_FORK = "fork of"
"""Stands among the settings: runs that differ in the seed alone are forks at the same update."""

_NAMING = (
    "dataset", "model", "loss", "optimizer", "consistency", "schedule", "channel", "compress",
    "arithmetic", "sampling",
)  # fmt: skip
"""Settings whose value says enough without their name."""

Curve = tuple[Sequence[float], Sequence[float]]
"""The places and heights of a curve."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Runs whose settings and data differ in the seed alone.

    Attributes:
        name: what distinguishes it from the others, such as "asp" or "learning_rate 0.01".
        runs: at least one.
    """

    name: str
    runs: tuple[History, ...]


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The settings in which runs differ.

    Attributes:
        settings: their names.
        runs: names of the runs.
        values: a list for each run, with an entry for each of these settings.
    """

    settings: tuple[str, ...]
    runs: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as lists."""
        return {"settings": list(self.settings), "runs": list(self.runs),
                "values": [list(row) for row in self.values]}  # fmt: skip


def differing(runs: Sequence[History]) -> Differences:
    """The settings, the dataset, and the parents, in which some of these runs differ."""
    found = differing_settings(list(map(_settings, runs)))
    return Differences(
        settings=tuple(found),
        runs=tuple(run.name for run in runs),
        values=tuple(
            tuple(values[place] for values in found.values()) for place in range(len(runs))
        ),
    )


def groups(runs: Sequence[History]) -> list[Group]:
    """The runs in groups, in the order of their first members; names are distinct."""
    members: dict[str, list[History]] = {}
    for run in runs:
        settings = {n: v for n, v in _settings(run).items() if n not in (*_BESIDE, _FORK)}
        settings[_FORK] = run.parent and run.parent["update"]
        members.setdefault(_key(settings), []).append(run)
    firsts = [found[0] for found in members.values()]
    names = labels(firsts, beside=_BESIDE)
    return [
        Group(name=name, runs=tuple(found))
        for name, found in zip(names, members.values(), strict=True)
    ]


def labels(runs: Sequence[History], beside: Sequence[str] = ()) -> list[str]:
    """A short name for each run that distinguishes it from the others.

    Args:
        runs: the runs.
        beside: settings that are no part of a name.
    """
    if len(runs) == 1:
        return [runs[0].name]
    found = differing(runs)
    shown = [name for name in found.settings if name not in (*beside, _FORK)]
    names = []
    for run, values in zip(runs, found.values, strict=True):
        parts = [
            str(value) if name in _NAMING else f"{name} {value}"
            for name, value in zip(found.settings, values, strict=True)
            if name in shown and value is not None
        ]
        names.append(", ".join(parts) or run.name)
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        names = [
            f"{name}, fork at update {run.parent['update']}" if name in twice and run.parent
            else name
            for name, run in zip(names, runs, strict=True)
        ]  # fmt: skip
    twice = {name for name in names if names.count(name) > 1}
    return [
        f"{name} ({run.name})" if name in twice and name != run.name else name
        for name, run in zip(names, runs, strict=True)
    ]


def band(curves: Sequence[Curve]) -> tuple[list[float], list[float], list[float], list[float]]:
    """The mean of curves, and the lowest and highest of them, where all of them have values.

    Returns:
        places, mean, low, high; empty if they have no place in common.
    """
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return [], [], [], []
    begin, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    longest = max((x for x, _ in curves), key=len)
    grid = [x for x in longest if begin <= x <= end]
    if not grid:
        return [], [], [], []
    heights = np.array([np.interp(grid, x, y) for x, y in curves])
    return (
        grid, heights.mean(axis=0).tolist(), heights.min(axis=0).tolist(),
        heights.max(axis=0).tolist(),
    )  # fmt: skip


def _settings(run: History) -> dict[str, Any]:
    """The settings, with the data they were used on, and what it was forked from."""
    digest = str(run.dataset.get("digest") or "")[:8]
    parent = run.parent and f"{run.parent['name']}, update {run.parent['update']}"
    return {**run.settings, "data": digest, _FORK: parent}


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
