"""What a page shows of one or several runs, as one JSON object made from their histories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from threading import Lock
from typing import Any

from distsgd.data.lock_file import is_locked
from distsgd.errors import DistsgdError, UsageError
from distsgd.figures.comparing import differing
from distsgd.figures.of_runs import AXES, FIGURES, build
from distsgd.runs.history import History, HistoryReader, plain
from distsgd.watch.listing import identity, stamp

__all__ = ["AXES", "RunView", "view"]

_CURVES = ("loss", "accuracy", "learning-rate", "throughput", "bytes")
_STILL = ("staleness", "classes", "confusion", "timeline")
"""Figures over the x axis of the page, and those that have an axis of their own."""

_IN_FIGURES = ("progress", "bytes", "staleness", "fleet", "classes", "trunk")
"""Fields of a history that are shown as figures and rows."""

_LATELY = 3
"""Points of a worker's row that are recent."""


class RunView:
    """One run as pages show it: its history, read again when its files have changed.

    Args:
        folder: the run folder.
        most: points of a curve.
    """

    def __init__(self, folder: Path, most: int = 500) -> None:
        self.folder, self._most = folder, most
        self._lock = Lock()
        self._reader: HistoryReader | None = None
        self._seen: object = None
        self.history: History | None = None
        self.problem = ""

    def stamp(self) -> tuple[object, ...]:
        """Equal as long as nothing has been written and the process that trains it lives."""
        return (*stamp(self.folder), is_locked(self.folder / ".running"))

    def look(self) -> None:
        """Read what was appended; a run that cannot be read keeps what was read before."""
        with self._lock:
            now = self.stamp()
            if now == self._seen:
                return
            try:
                self.read()
                self.problem = ""
            except (DistsgdError, OSError) as error:
                self.problem = str(error)
            self._seen = now

    def read(self) -> None:
        """Read what was appended.

        Raises:
            RunError: it cannot be read.
            StorageError: likewise, by this machine.
        """
        if self._reader is None:
            self._reader = HistoryReader(self.folder, most=self._most)
        self.history = self._reader.look()


def view(runs: Sequence[RunView], axes: Sequence[str]) -> dict[str, Any]:
    """The runs and their figures.

    Args:
        runs: that have been looked at.
        axes: of `AXES`; curves are made for each.

    Returns:
        runs: a JSON object for each; curves: axis -> figures over it; figures: the others;
        differing: the settings that differ, if there are several runs.
    """
    known = [run.history for run in runs if run.history is not None]
    found: dict[str, Any] = {
        "runs": [_run(run) for run in runs],
        "curves": {x: list(_figures(_CURVES, known, x)) for x in axes},
        "figures": list(_figures(_STILL, known, axes[0])),
    }
    if known[1:]:
        found["differing"] = _differing(known)
    return found


def _figures(names: Sequence[str], runs: Sequence[History], x: str) -> Iterator[dict[str, Any]]:
    for name in names:
        known = FIGURES[name]
        if not runs or (runs[1:] and not known.several):
            continue
        with suppress(UsageError):  # there is nothing to draw yet
            yield {**build(name, runs, x).to_json(), "heading": known.title}


def _differing(runs: Sequence[History]) -> dict[str, Any]:
    """The settings that differ, and what each run has reached."""
    found = differing(runs).to_json()
    ends = [
        [run.state, _last(run, "test_accuracy"), _last(run, "test_loss"), run.seconds]
        for run in runs
    ]
    return {**found, "ends": plain(ends)}


def _last(run: History, name: str) -> Any:
    column = run.epochs.get(name)
    return column[-1] if column else None


def _run(run: RunView) -> dict[str, Any]:
    found: dict[str, Any] = {"id": identity(run.folder), "problem": run.problem}
    if run.history is None:
        return {**found, "name": run.folder.name, "state": "empty"}
    names = [one.name for one in fields(History) if one.name not in _IN_FIGURES]
    content = {name: plain(getattr(run.history, name)) for name in names}
    classes = run.history.classes
    wrong = {name: plain(classes.get(name, [])) for name in ("names", "surest_wrong")}
    workers = [_worker(name, columns) for name, columns in run.history.fleet.items()]
    return {**found, **content, **wrong, "workers": plain(workers)}


def _worker(name: str, columns: dict[str, Any]) -> dict[str, Any]:
    """A worker's row: its state, and the seconds of each activity, in all and lately."""
    row: dict[str, Any] = {
        "name": name,
        "state": columns["state"],
        "images": sum(columns["images"]),
    }
    for activity in ("computing", "pushing", "waiting"):
        seconds = [value or 0.0 for value in columns[activity]]
        row[activity] = sum(seconds)
        row[f"recent_{activity}"] = sum(seconds[-_LATELY:])
    return row
