"""What the metrics of a run say, kept in bounded size while the file grows.

Records have a kind:

    forked      first of a fork: the update, examples and seconds that it shares with its parent
    session     a training starts, or resumes: when, where, by which command, and how many updates
    progress    every `log_every` updates: loss, accuracy, learning rate
    epoch       at the end of each epoch: loss and accuracy of training and test set
    classes     with an epoch: confusion matrix of the test set, and its surest mistakes
    fleet       now and then: what each worker has done since the processes started, in all; how
                old gradients were, and the bytes that were pushed
    event       what happened: a death, a replacement, another number of workers
    ended       the time of the last update
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from distsgd.runs.followed_file import FollowedFile
from distsgd.runs.metrics import LONGEST_RECORD, is_whole_record, score_of
from distsgd.runs.thinning import ThinnedSeries, thinned

__all__ = ["EVENT_KINDS", "MOST_EVENTS", "MOST_MISTAKES", "Recorded"]

EVENT_KINDS = (
    "death", "replaced", "scaled", "stranger", "resumed", "saved", "notice", "stopped",
)  # fmt: skip
"""What can happen in a run."""

MOST_EVENTS, MOST_MISTAKES = 1000, 24
_MOST_NUMBERS = 20_000
"""Accuracies of classes that are kept, over all epochs."""

_MOST_CLASSES = 128
_MOST_WORKERS = 1024
_MOST_AGES = 1000
_MOST_WAITING = 64
"""Epochs without a checkpoint that may still get one, and be the best."""

_PROGRESS = b'{"kind": "progress"'

_NOTHING = (0, 0.0, 0.0, 0.0)

Row = dict[str, Any]


class FleetPoint(NamedTuple):
    """What the fleet has done until some moment.

    Attributes:
        seconds: of steps.
        workers: worker -> images, and seconds of computing, pushing and waiting; in all.
        states: worker -> what it did then.
        pushed: bytes, in all.
    """

    seconds: float
    workers: dict[str, tuple[float, ...]]
    states: dict[str, str]
    pushed: int


@dataclass
class _Totals:
    """Counts of the processes before the present ones, and of these until now."""

    workers: dict[str, tuple[float, ...]] = field(default_factory=dict)
    ages: dict[str, int] = field(default_factory=dict)
    pushed: int = 0


class Recorded:
    """Follows metrics.jsonl.

    Args:
        path: the file.
        most: points that are kept of a series.

    Attributes:
        sessions: the first and the last record of that kind.
        forked: the record of that kind; empty if the run is no fork.
        events: what happened, in order; of very many, the first and the last.
        epochs: the epochs that are kept, by number.
        confusion: the last one; rows the true class.
        mistakes: those of the same epoch.
        damaged: lines that could not be read.
    """

    def __init__(self, path: Path, most: int = 1000) -> None:
        self._file, self._most = FollowedFile(path, LONGEST_RECORD), most
        self._start()

    def _start(self) -> None:
        self.progress = ThinnedSeries[bytes, Row](
            _steps, lambda row: float(row["step"]), self._most
        )
        self.fleet = ThinnedSeries[FleetPoint, FleetPoint](
            lambda point: point, lambda point: point.seconds, self._most
        )
        self.sessions: list[Row] = []
        self.forked: Row = {}
        self.events: list[Row] = []
        self.epochs: dict[int, Row] = {}
        self._stride = 1
        self._first_epoch, self._last_epoch = 0, 0
        self.class_accuracy: dict[int, list[float | None]] = {}
        self.confusion: list[list[int]] = []
        self.mistakes: list[Row] = []
        self.last: Row = {}
        self.damaged = 0
        self._before, self._now, self._generation = _Totals(), _Totals(), -1
        self._best: tuple[float, float, int] | None = None
        self._unsaved: list[tuple[float, float, int]] = []

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    @property
    def ages(self) -> dict[str, int]:
        """Age of a gradient in updates -> contributions of that age, over the whole run."""
        return _sums(self._before.ages, self._now.ages)

    def look(self) -> None:
        """Read what is new.

        Raises:
            RunError: the file cannot be read.
        """
        over, pieces = self._file.look()
        if over:
            self._start()
        for lines in pieces:
            for line in lines:
                if line.startswith(_PROGRESS):
                    self.progress.offer(line)
                elif line:
                    self._take(line)

    def _take(self, line: bytes) -> None:
        record = _row(line)
        if record is None:
            self.damaged += 1
            return
        take = {
            "session": self._take_session, "epoch": self._take_epoch, "fleet": self._take_fleet,
            "forked": self._take_forked, "classes": self._take_classes,
            "event": self._take_event, "ended": self._take_ended,
        }.get(str(record.get("kind")))  # fmt: skip
        if take is None:
            return  # of a later version
        try:
            take(record)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
            self.damaged += 1

    def _take_session(self, record: Row) -> None:
        self._rebase()
        begins = bool(self.forked) and not self.sessions
        del self.sessions[1:]
        self.sessions.append(record)
        if record.get("resumed") and not begins:
            text = f"resumed after update {_count(record['step'])}"
            self._happened(record["step"], record.get("seconds", 0.0), "resumed", text)

    def _take_forked(self, record: Row) -> None:
        shared = {name: _count(record[name]) for name in ("step", "examples_seen")}
        self.forked = {**shared, "seconds": _number(record["seconds"])}

    def _take_ended(self, record: Row) -> None:
        self.last = record

    def _take_event(self, record: Row) -> None:
        what = record["what"] if record["what"] in EVENT_KINDS else "notice"
        self._happened(record["step"], record["seconds"], what, str(record["text"]))

    def _happened(self, step: Any, seconds: Any, kind: str, text: str) -> None:
        event = {
            "seconds": _number(seconds), "step": _count(step), "kind": kind, "text": text[:1000],
        }  # fmt: skip
        if len(self.events) >= MOST_EVENTS:
            del self.events[MOST_EVENTS // 2]
        self.events.append(event)

    def _take_epoch(self, record: Row) -> None:
        epoch = _count(record["epoch"])
        score = score_of(record, _count(record["version"]))
        if score is None:
            pass
        elif record.get("saved", True):
            self._best = score if self._best is None else max(self._best, score)
            self._unsaved = [other for other in self._unsaved if other > self._best]
        elif self._best is None or score > self._best:
            self._unsaved = sorted((*self._unsaved, score), reverse=True)[:_MOST_WAITING]
        last = self._last_epoch
        if epoch <= last:  # repeated, as after a kill
            self.epochs = {known: row for known, row in self.epochs.items() if known < epoch}
        if self.epochs and last in self.epochs and last % self._stride and last != self._first():
            del self.epochs[last]
        self.epochs[epoch], self._last_epoch = record, epoch
        if len(self.epochs) > 2 * self._most:
            self._stride *= 2
            first = self._first()
            self.epochs = {
                number: row
                for number, row in self.epochs.items()
                if number % self._stride == 0 or number in (first, epoch)
            }

    def _first(self) -> int:
        return next(iter(self.epochs), 0)

    def best(self, there: Sequence[int]) -> int | None:
        """The version of the best epoch that has a checkpoint; see `metrics.best_epoch`.

        Args:
            there: versions of the checkpoints.
        """
        known = set(there)
        found = [score for score in self._unsaved if score[2] in known]
        best = max([*found, *([self._best] if self._best else [])], default=None)
        return None if best is None else best[2]

    @property
    def best_accuracy(self) -> float | None:
        """The largest validation accuracy of an epoch, with a checkpoint or without."""
        found = [*self._unsaved, *([self._best] if self._best else [])]
        return max(found)[0] if found else None

    def _take_classes(self, record: Row) -> None:
        epoch = _count(record["epoch"])
        counts = record.get("confusion")
        if counts is not None:
            matrix = [[_count(n) for n in row] for row in counts]
            if len(matrix) > _MOST_CLASSES or any(len(row) != len(matrix) for row in matrix):
                raise ValueError("it is no confusion matrix")
            hits = [row[i] for i, row in enumerate(matrix)]
            totals = [sum(row) for row in matrix]
            self.confusion = matrix
        else:
            hits, totals = ([_count(n) for n in record[name]] for name in ("hits", "examples"))
        shares = [hit / total if total else None for hit, total in zip(hits, totals, strict=True)]
        if self.class_accuracy and epoch <= next(reversed(self.class_accuracy)):
            kept = [known for known in self.class_accuracy if known < epoch]
            self.class_accuracy = {known: self.class_accuracy[known] for known in kept}
        self.class_accuracy[epoch] = shares
        most = max(2, min(self._most, _MOST_NUMBERS // max(1, len(shares))))
        if len(self.class_accuracy) > 2 * most:
            kept = thinned(sorted(self.class_accuracy), most)
            self.class_accuracy = {epoch: self.class_accuracy[epoch] for epoch in kept}
        self.mistakes = [
            {"index": _count(index), "label": _count(label), "predicted": _count(predicted),
             "probability": _number(probability)}
            for index, label, predicted, probability in record.get("wrong", [])[:MOST_MISTAKES]
        ]  # fmt: skip

    def _rebase(self) -> None:
        """What follows is counted from 0 again, by other processes."""
        before, now = self._before, self._now
        workers = {
            name: tuple(
                a + b for a, b in zip(
                    before.workers.get(name, _NOTHING), now.workers.get(name, _NOTHING),
                    strict=True,
                )
            )
            for name in {**before.workers, **now.workers}
        }  # fmt: skip
        self._before = _Totals(workers, self.ages, before.pushed + now.pushed)
        self._now, self._generation = _Totals(), -1

    def _take_fleet(self, record: Row) -> None:
        if record["generation"] != self._generation:
            self._rebase()
            self._generation = _count(record["generation"])
        workers: dict[str, tuple[float, ...]] = {}
        states: dict[str, str] = {}
        for name, (images, computing, pushing, waiting, state) in record["workers"].items():
            if len(workers) == _MOST_WORKERS:
                break
            times = map(_number, (computing, pushing, waiting))
            workers[str(name)[:20]] = (_count(images), *times)
            states[str(name)[:20]] = str(state)[:20]
        ages = {str(int(age)): _count(n) for age, n in list(record["ages"].items())[:_MOST_AGES]}
        self._now = _Totals(workers, ages, _count(record["pushed"]))
        before = self._before
        every = {
            name: tuple(
                a + b for a, b in zip(
                    before.workers.get(name, _NOTHING), workers.get(name, _NOTHING),
                    strict=True,
                )
            )
            for name in {**before.workers, **workers}
        }  # fmt: skip
        self.fleet.offer(
            FleetPoint(_number(record["seconds"]), every, states, before.pushed + self._now.pushed)
        )


def _row(line: bytes) -> Row | None:
    """A record; None if it is damaged."""
    try:
        record = json.loads(line)
        return record if is_whole_record(record) else None
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
        return None


def _steps(line: bytes) -> Row | None:
    """A record of progress; None if it is damaged."""
    record = _row(line)
    if record is None:
        return None
    try:
        _count(record["step"])
        _count(record["examples_seen"])
        _number(record["seconds"])
        for name in ("loss", "accuracy", "learning_rate"):
            record[name] = float(record[name])
    except (ValueError, LookupError, TypeError):
        return None
    return record


def _sums(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    found = {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("it is not a count")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("it is not a number")
    return float(value)
