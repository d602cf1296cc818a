"""What a run keeps beside losses and journal: its sessions, its fleet, classes and events.

These are lines of metrics.jsonl, described in `distsgd.runs.recorded`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from distsgd.engine.fleet_report import FleetReport
from distsgd.runs.origin import Origin
from distsgd.training.measuring import Measured

__all__ = ["Chronicle"]

_MOST_CLASSES, _MOST_SHARES = 128, 1000
"""Classes up to which a matrix is kept, and up to which accuracies are."""

_BYTES_AT_FIRST, _BYTES_AN_EPOCH = 1 << 16, 4096
_FEW_EPOCHS, _EVERY_SECONDS = 60, 0.5
_MOST_EVENTS = 10_000
_DIGITS = 6

Record = dict[str, Any]


class Chronicle:
    """Writes records of bounded size: a few KB an epoch, and of very short epochs only some.

    Args:
        write: appends a record to the metrics; returns its bytes, 0 if there is no room.
        seconds: spent on steps before this session.
    """

    def __init__(self, write: Callable[[Record], int], seconds: float) -> None:
        self._write = write
        self._step, self._seconds = 0, seconds
        self._generation = -1
        self._classes: Record | None = None  # of an epoch that has no record
        self._classes_at = -_EVERY_SECONDS
        self._allowance, self._epochs, self._events = _BYTES_AT_FIRST, 0, 0

    def at(self, step: int, seconds: float) -> None:
        """How far the run is now."""
        self._step, self._seconds = step, seconds

    def session(
        self, origin: Origin, step: int, workers: int, planned: int, epochs: int, *, resumed: bool
    ) -> None:
        """A session starts.

        Args:
            origin: where it comes from.
            step: updates before it.
            workers: its number of workers.
            planned: updates of the whole run.
            epochs: likewise.
            resumed: whether the run had been started before.
        """
        self._step = step
        self._write({
            "kind": "session", "step": step, "seconds": self._seconds,
            "started": round(time.time(), 3), "resumed": resumed, "workers": workers,
            "planned": planned, "epochs": epochs, "command": list(origin.command or ()) or None,
            "git": origin.git, "host": origin.host,
        })  # fmt: skip

    def processes_started(self) -> None:
        """Reports of other processes follow, which count from 0."""
        self._generation += 1

    def fleet(self, report: FleetReport, seconds: float) -> None:
        """What the fleet has done.

        Args:
            report: since its processes started.
            seconds: of the run.
        """
        self.at(report.step, seconds)
        self._write({
            "kind": "fleet", "step": report.step, "seconds": round(seconds, _DIGITS),
            "generation": self._generation,
            "workers": {
                str(worker): [
                    one.images, round(one.computing, _DIGITS), round(one.pushing, _DIGITS),
                    round(one.waiting, _DIGITS), one.state,
                ]
                for worker, one in report.workers.items()
            },
            "ages": {str(age): n for age, n in sorted(report.ages.items())},
            "pushed": report.pushed,
        })  # fmt: skip

    def happened(self, kind: str, text: str) -> None:
        """Something happened; of very many, only the first are kept."""
        self._events += 1
        if self._events <= _MOST_EVENTS:
            self._write({
                "kind": "event", "what": kind, "step": self._step,
                "seconds": round(self._seconds, _DIGITS), "text": text,
            })  # fmt: skip

    def classes(self, epoch: int, version: int, found: Measured) -> None:
        """How the test examples of each class were classified at the end of an epoch.

        Args:
            epoch: from 1.
            version: of W.
            found: the measurement of the test set.
        """
        matrix, number = found.confusion, len(found.confusion)
        if number > _MOST_SHARES:
            return
        content: Record = {"kind": "classes", "epoch": epoch, "version": version}
        if number <= _MOST_CLASSES:
            content["confusion"] = matrix.tolist()
        else:
            content["hits"] = matrix.diagonal().tolist()
            content["examples"] = matrix.sum(axis=1).tolist()
        content["wrong"] = [
            [one.index, one.label, one.predicted, round(one.probability, _DIGITS)]
            for one in found.mistakes
        ]
        self._epochs += 1
        self._allowance += _BYTES_AN_EPOCH
        self._classes = content
        late = time.monotonic() >= self._classes_at + _EVERY_SECONDS
        if late or self._epochs <= _FEW_EPOCHS:
            self._write_classes()

    def _write_classes(self, *, last: bool = False) -> None:
        if self._classes is None or (self._allowance <= 0 and not last):
            return
        self._allowance -= self._write(self._classes)
        self._classes, self._classes_at = None, time.monotonic()

    def close(self) -> None:
        """The session ends: write what is left of its last epoch."""
        self._write_classes(last=True)
