"""The first update of a run at which a condition holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distsgd.config.jobs import held_out_rows
from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease
from distsgd.core.model import measure
from distsgd.core.server import WorkQueue
from distsgd.engine.blas import one_blas_thread
from distsgd.engine.job import Job
from distsgd.engine.worker import Worker
from distsgd.errors import UsageError
from distsgd.forensics.conditions import MEASURED, Condition, parse_condition
from distsgd.forensics.gradients import rows_of
from distsgd.proof.moments import update_of
from distsgd.proof.replayer import Step
from distsgd.proof.timeline import Timeline
from distsgd.runs.opened_run import OpenedRun, open_run

__all__ = ["Bisected", "bisect"]

_TOGETHER = 1024

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Bisected:
    """What `bisect` found.

    Attributes:
        run_dir: the run folder.
        condition: as it was given.
        update: the first update at which it holds; None if it holds at none that was looked at.
        applied: False for the update after the last, with which the training diverged.
        before: quantity -> its value at the update before; None without one.
        after: quantity -> its value at the update.
        epoch: of the update, from 1.
        minibatch: its place in the epoch, from 1.
        exact: whether every update before was looked at; else the condition is assumed to hold
            from the first time on, as between two ends of a search by halves.
        looked_at: how many updates were looked at.
        first: the first update of the search.
        last: the last update of the run.
    """

    run_dir: str
    condition: str
    update: int | None
    applied: bool
    before: dict[str, float] | None
    after: dict[str, float] | None
    epoch: int | None
    minibatch: int | None
    exact: bool
    looked_at: int
    first: int
    last: int


def bisect(
    run: str | Path | os.PathLike[str] | OpenedRun,
    until: str,
    *,
    start: int | str = 1,
    every: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Bisected:
    """Find the first update of a run at which a condition holds.

    What the journal or the replay says of every update is looked at for every update. Quantities
    that are measured on a dataset are looked at after the last update of every epoch, and then by
    halves in the epoch in which the condition began to hold, which is assumed to hold on.

    Args:
        run: path or name of a run, "latest", a loaded run; or an open one.
        until: the condition; see `distsgd.forensics.conditions`.
        start: the update from which on to look; see `distsgd.proof.moments.MOMENTS`.
        every: measure after every update.
        progress: receives what is done, how many updates of it, and of how many.

    Raises:
        UsageError: the condition cannot be understood, or cannot be measured for this run.
        RunError: the run is missing or damaged.
    """
    if not isinstance(run, OpenedRun):
        run = open_run(run if isinstance(run, str) else Path(run))
    condition = parse_condition(until)
    with one_blas_thread():
        return _Search(run, condition, progress).found(start, every)


class _Search:
    """A search in one run."""

    def __init__(self, run: OpenedRun, condition: Condition, progress: Progress) -> None:
        self._run, self._condition, self._progress = run, condition, progress
        self._timeline, self._looked = Timeline(run), 0
        self._wanted = {one.key: one for one in condition.clauses if one.quantity != "diverged"}
        for one in self._wanted.values():
            if one.of_class and one.of_class not in run.dataset.manifest.classes:
                names = ", ".join(run.dataset.manifest.classes[:20])
                raise UsageError(f"the run has no class '{one.of_class}'", f"Give one of {names}")
            if one.quantity.startswith("validation") and not run.origin.validation:
                raise UsageError("the run has no validation rows", "Give a test_ quantity")

    def found(self, start: int | str, every: bool) -> Bisected:
        first, last = max(1, update_of(self._run, start, self._timeline)), self._timeline.last
        measured = self._condition.source() == MEASURED and not every
        if self._wanted and first <= last:
            ranges = self._narrowed(first, last) if measured else self._scanned(first, last)
            if ranges is not None:
                return ranges
        return self._after_last(first, last, exact=not measured)

    def _scanned(self, first: int, last: int) -> Bisected | None:
        """Every update, one after the other."""
        before = None
        for step in self._timeline.steps(first, last):
            values = self._values(step)
            if self._condition.holds(values):
                return self._result(step, before, values, first, last, exact=True)
            before = values
            if self._looked % 20 == 0:
                self._progress("updates", step.record.version - first + 1, last - first + 1)
        return None

    def _narrowed(self, first: int, last: int) -> Bisected | None:
        """Ends of epochs, and then by halves."""
        low, ends = first - 1, list(self._ends(first, last))
        step, values = self._at(first)
        if self._condition.holds(values):
            return self._result(step, None, values, first, last, exact=True)
        low, before = first, values
        for number, end in enumerate(ends):
            self._progress("ends of epochs", number, len(ends))
            kept = [clause.extreme for clause in self._condition.clauses]
            step, values = self._at(end)
            if not self._condition.holds(values):
                low, before = end, values
                continue
            while end - low > 1:
                self._progress("updates between two ends", 0, end - low)
                middle = (low + end) // 2
                between, found = self._at(middle)
                self._restore(kept)
                if self._condition.holds(found):
                    end, step, values = middle, between, found
                else:
                    low, before = middle, found
            return self._result(step, before, values, first, last, exact=False)
        return None

    def _restore(self, kept: list[float | None]) -> None:
        for clause, extreme in zip(self._condition.clauses, kept, strict=True):
            clause.extreme = extreme

    def _ends(self, first: int, last: int) -> Iterator[int]:
        """Last updates of epochs after the first, as far as they are known, and the last of all."""
        (step,) = self._timeline.steps(first, first)
        plan, record = step.job.plan, step.record
        updates = step.job.updates // plan.epochs
        del record
        yield from range((first // updates + 1) * updates, last, updates)
        if last > first:
            yield last

    def _at(self, version: int) -> tuple[Step, dict[str, float]]:
        (step,) = self._timeline.steps(version, version)
        return step, self._values(step)

    def _values(self, step: Step) -> dict[str, float]:
        """The quantities of the condition at an update."""
        self._looked += 1
        found: dict[str, float] = {}
        measured: dict[str, tuple[float, float, dict[str, float]]] = {}
        for key, clause in self._wanted.items():
            if clause.quantity in _OF_STEP:
                found[key] = _OF_STEP[clause.quantity](step)
                continue
            split, _, kind = clause.quantity.partition("_")
            if split not in measured:
                measured[split] = self._measured(step, split)
            loss, accuracy, classes = measured[split]
            own = classes[clause.of_class] if clause.of_class else accuracy
            found[key] = loss if kind == "loss" else own
        return found

    def _measured(self, step: Step, split: str) -> tuple[float, float, dict[str, float]]:
        """Loss with the penalty, accuracy, and that of each class, of W after an update."""
        job, dataset = step.job, self._run.dataset
        examples = dataset.test if split == "test" else dataset.train
        batches = examples.batches()
        if split != "test" and self._run.origin.validation:
            rows = (
                job.plan.trained if split == "train" else held_out_rows(self._run.origin, dataset)
            )
            parts = [rows[low : low + _TOGETHER] for low in range(0, len(rows), _TOGETHER)]
            batches = (
                (rows_of(examples, part, job.features), examples.labels_of(part)) for part in parts
            )
        found, confusion = measure(
            job.architecture, step.after, job.loss, job.preprocessing, batches
        )
        penalty = job.architecture.penalty(step.after, job.regularization)
        counts = np.maximum(1, confusion.sum(axis=1))
        shares = (confusion.diagonal() / counts).tolist()
        count = max(1, found.examples)
        return (
            found.loss / count + penalty, found.correct / count,
            dict(zip(dataset.manifest.classes, shares, strict=True)),
        )  # fmt: skip

    def _result(
        self, step: Step, before: dict[str, float] | None, after: dict[str, float], first: int,
        last: int, *, exact: bool,
    ) -> Bisected:  # fmt: skip
        plan, record = step.job.plan, step.record
        return self._bisected(
            record.version, before, after, first, last, exact=exact, applied=True,
            epoch=plan.epoch_of(record.contributions[0][1].step) + 1,
            minibatch=record.step % plan.steps_per_epoch + 1,
        )  # fmt: skip

    def _bisected(
        self, update: int | None, before: dict[str, float] | None, after: dict[str, float] | None,
        first: int, last: int, *, exact: bool, applied: bool, epoch: int | None = None,
        minibatch: int | None = None,
    ) -> Bisected:  # fmt: skip
        return Bisected(
            run_dir=str(self._run.folder.path), condition=self._condition.text, update=update,
            applied=applied, before=before, after=after, epoch=epoch, minibatch=minibatch,
            exact=exact, looked_at=self._looked, first=first, last=last,
        )  # fmt: skip

    def _after_last(self, first: int, last: int, *, exact: bool) -> Bisected:
        """The update with which a training diverged, which was never applied."""
        if self._run.folder.status() == "diverged":
            moment = self._timeline.at(last)
            job = self._run.job(moment.config)
            values, step = _never_applied(job, moment.snapshot.weights, moment.snapshot.position,
                                          last, moment.config.workers)  # fmt: skip
            self._looked += 1
            known = {**dict.fromkeys(self._wanted, float("nan")), **values, "diverged": 1.0}
            if self._condition.holds(known):
                plan = job.plan
                return self._bisected(
                    last + 1, None, values, first, last, exact=exact, applied=False,
                    epoch=plan.epoch_of(step) + 1, minibatch=step % plan.steps_per_epoch + 1,
                )  # fmt: skip
        return self._bisected(None, None, None, first, last, exact=exact, applied=True)


def _never_applied(
    job: Job, weights: Floats, position: object, version: int, workers: int
) -> tuple[dict[str, float], int]:
    """Loss, norm of the gradient and of W after it, of the minibatch that would have come next."""
    minibatch = WorkQueue(job.plan, job.policy, position).open(max(1, workers))  # type: ignore[arg-type]
    worker, total = Worker(job), np.zeros(job.parameters)
    loss, examples = 0.0, 0
    with np.errstate(all="ignore"):
        for piece in minibatch.pieces:
            lease = Lease(*piece, version, minibatch.steps, minibatch.replicas)
            push = worker.answer(lease, weights)
            total += push.gradients.sum(axis=0, dtype=np.float64)
            loss += sum(part.loss for part in push.losses)
            examples += sum(part.examples for part in push.losses)
        rate = job.schedule.at(minibatch.step)
        mean = total / examples + (0 if minibatch.replicas else job.decay() * weights)
        norm = float(np.linalg.norm(mean))
    return {"loss": loss / examples, "gradient_norm": norm, "learning_rate": rate}, minibatch.step


def _norm(values: Floats) -> float:
    return float(np.linalg.norm(values.astype(np.float64, copy=False)))


def _gradient_norm(step: Step) -> float:
    local = any(lease.replicas for _, lease in step.record.contributions)
    return _norm(step.gradient + (0 if local else step.job.decay() * step.before))


def _step_norm(step: Step) -> float:
    return _norm(step.after.astype(np.float64) - step.before)


_OF_STEP: dict[str, Callable[[Step], float]] = {
    "staleness": lambda step: float(
        max(step.record.version - 1 - lease.version for _, lease in step.record.contributions)
    ),
    "learning_rate": lambda step: step.learning_rate,
    "deferred": lambda step: float(sum(last - first for *_, first, last in step.record.requeued)),
    "loss": lambda step: step.loss,
    "minibatch_accuracy": lambda step: step.correct / step.examples,
    "gradient_norm": _gradient_norm,
    "weight_norm": lambda step: _norm(step.after),
    "step_norm": _step_norm,
    "step_ratio": lambda step: _step_norm(step) / (_norm(step.before) or float("nan")),
}
"""Quantity -> its value at an update, for those that need no dataset but the minibatch."""
