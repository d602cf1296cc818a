"""The updates that a training example took part in, and what each of them did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model.example_gradients import (
    ExampleGradients,
    example_gradients,
    products_with,
    summed,
)
from distsgd.engine.job import Job
from distsgd.forensics.blame import check_number, rows_of
from distsgd.forensics.contributions import Contribution, Contributions, features_of_rows
from distsgd.proof.moments import update_of
from distsgd.proof.replayer import Step
from distsgd.proof.timeline import Timeline
from distsgd.runs.opened_run import OpenedRun, open_run

__all__ = ["ExampleHistory", "PartTaken", "example_history"]


@dataclass(frozen=True, kw_only=True)
class PartTaken:
    """An update that an example took part in.

    Losses are without the penalty. A change is what the whole step did; an "own" one is what the
    example's own gradient in it did, to first order: minus the learning rate times its share times
    the inner product with the gradient of what is looked at (without what momentum makes of it in
    later updates; None with adagrad and adam, which divide gradients entry by entry).

    Attributes:
        update: its number.
        epoch: from 1.
        step: of the plan, from 0.
        slot: of its minibatch, from 0.
        worker: who computed the gradient.
        version: W that it was computed at.
        staleness: updates between that W and this one.
        loss_before: of the example, at W before the update.
        loss_after: at W after it.
        own: on the example's own loss.
        expected: of the example's loss by the whole step, to first order.
        minibatch_before: mean loss of the examples of the update, at W before it.
        minibatch_after: at W after it.
        test_own: on the test loss.
        test_before: test loss at W before the update.
        test_after: at W after it.
    """

    update: int
    epoch: int
    step: int
    slot: int
    worker: int
    version: int
    staleness: int
    loss_before: float
    loss_after: float
    own: float | None
    expected: float
    minibatch_before: float
    minibatch_after: float
    test_own: float | None
    test_before: float
    test_after: float


@dataclass(frozen=True, kw_only=True)
class ExampleHistory:
    """What a training example did.

    Attributes:
        run_dir: the run folder.
        example: its number, from 0.
        label: its class.
        held_out: whether it is held out for validation, so that it is in no minibatch.
        factor: what its gradients are multiplied by.
        test: number of the test example that test losses are of; None for the whole test set.
        updates: how many updates the run has.
        parts: those it took part in.
    """

    run_dir: str
    example: int
    label: str
    held_out: bool
    factor: float
    test: int | None
    updates: int
    parts: tuple[PartTaken, ...]

    @property
    def totals(self) -> dict[str, float]:
        """Over all parts: of own effects, of what was expected, and of changes."""
        parts = self.parts
        return {
            "own": sum(one.own or 0.0 for one in parts),
            "expected": sum(one.expected for one in parts),
            "change": sum(one.loss_after - one.loss_before for one in parts),
            "minibatch_change": sum(one.minibatch_after - one.minibatch_before for one in parts),
            "test_own": sum(one.test_own or 0.0 for one in parts),
            "test_change": sum(one.test_after - one.test_before for one in parts),
        }

    def to_json(self) -> dict[str, Any]:
        """The fields, and "totals"."""
        return {**vars(self), "parts": [vars(one) for one in self.parts], "totals": self.totals}


def example_history(
    run: str | Path, example: int, *, test: int | None = None, at: int | str = "last"
) -> ExampleHistory:
    """What each update did that a training example took part in.

    Args:
        run: path or name of a run, or "latest".
        example: number of the training example, from 0.
        test: number of a test example, whose loss is looked at; None for all of them.
        at: the last update to look at; see `distsgd.proof.moments.MOMENTS`.

    Raises:
        UsageError: there is no such example or update.
        RunError: there is no such run, or it cannot be recomputed.
    """
    opened = open_run(run)
    dataset = opened.dataset
    check_number("example", example, len(dataset.train), "training", dataset)
    if test is not None:
        check_number("test", test, len(dataset.test), "test", dataset)
    timeline = Timeline(opened)
    first, last = timeline.first + 1, update_of(opened, at, timeline)
    seen = _Seen(opened, example, test)
    parts: list[PartTaken] = []
    factor, held_out = 1.0, False
    for step in timeline.steps(first, last) if last >= first else ():
        held_out = bool(np.isin(example, step.job.plan.held_out))
        for part, own in seen.parts(step):
            parts.append(part)
            factor = own
    return ExampleHistory(
        run_dir=str(opened.folder.path),
        example=example,
        label=dataset.manifest.classes[int(dataset.train.labels_of(np.array([example]))[0])],
        held_out=held_out,
        factor=factor,
        test=test,
        updates=max(0, last - first + 1),
        parts=tuple(parts),
    )


class _Seen:
    """Looks at one example, and at what is tested, through the updates of a run."""

    def __init__(self, run: OpenedRun, example: int, test: int | None) -> None:
        self._run, self._example, self._test = run, example, test
        self._contributions = Contributions(run.dataset.train)

    def parts(self, step: Step) -> Iterator[tuple[PartTaken, float]]:
        """Of an update those of the example, each with its factor."""
        record, job = step.record, step.job
        rows = np.concatenate([
            self._contributions.rows(job, *piece)
            for _, lease in record.contributions
            for piece in lease.slots(job.plan)
        ])  # fmt: skip
        if self._example not in rows:
            return
        batch = [self._of_train(job, weights, rows) for weights in (step.before, step.after)]
        tested = self._tested(job, step.before), self._tested(job, step.after)
        own = self._of_train(job, step.before, np.array([self._example]))
        after = self._of_train(job, step.after, np.array([self._example]))
        moved = [part[None] for part in job.architecture.split(step.after - step.before)]
        expected = float(products_with(own, moved)[0, 0])
        towards = summed(own, np.ones((1, 1), step.before.dtype))
        for one in self._contributions.of(step):
            for place in np.flatnonzero(one.rows == self._example).tolist():
                linear = job.optimizer not in ("adagrad", "adam")
                effect = -one.rate * one.share
                part = PartTaken(
                    update=record.version,
                    epoch=job.plan.epoch_of(one.step) + 1,
                    step=one.step,
                    slot=one.first + place // job.plan.slot_size,
                    worker=one.worker,
                    version=one.lease.version,
                    staleness=record.version - 1 - one.lease.version,
                    loss_before=float(own.losses[0]),
                    loss_after=float(after.losses[0]),
                    own=effect * _product(one, place, towards) if linear else None,
                    expected=expected,
                    minibatch_before=float(batch[0].losses.mean(dtype=np.float64)),
                    minibatch_after=float(batch[1].losses.mean(dtype=np.float64)),
                    test_own=effect * _product(one, place, tested[0][1]) if linear else None,
                    test_before=tested[0][0],
                    test_after=tested[1][0],
                )
                yield part, 1.0 if one.factors is None else float(one.factors[place])

    def _of_train(self, job: Job, weights: Floats, rows: NDArray[np.int64]) -> ExampleGradients:
        split = self._run.dataset.train
        pixels = rows_of(split, rows, job.features)
        return _gradients(job, weights, pixels, split.labels_of(rows))

    def _tested(self, job: Job, weights: Floats) -> tuple[float, list[Floats]]:
        """Mean test loss, and its gradient, of each layer with a first axis of 1."""
        split = self._run.dataset.test
        if self._test is not None:
            number = np.array([self._test])
            found = _gradients(job, weights, rows_of(split, number, job.features),
                               split.labels_of(number))  # fmt: skip
            return float(found.losses[0]), summed(found, np.ones((1, 1), weights.dtype))
        loss = 0.0
        total: list[Floats] = [np.zeros((1, *one.padded)) for one in job.architecture.layers]
        for pixels, labels in split.batches():
            for low in range(0, len(labels), _TOGETHER):
                part = slice(low, low + _TOGETHER)
                found = _gradients(job, weights, pixels[part], labels[part])
                loss += float(found.losses.sum(dtype=np.float64))
                share = np.full((len(found.losses), 1), 1 / len(split), weights.dtype)
                for whole, own in zip(total, summed(found, share), strict=True):
                    whole += own
        return loss / len(split), total


_TOGETHER = 1024
"""Test examples whose gradients are computed at once."""


def _gradients(job: Job, weights: Floats, pixels: NDArray[Any], labels: Ints) -> ExampleGradients:
    features = features_of_rows(job.preprocessing, pixels, job.dtype)
    return example_gradients(job.architecture, weights, features, labels, job.loss)


def _product(one: Contribution, place: int, vectors: list[Floats]) -> float:
    """The inner product of one example's gradient with a vector in the space of W."""
    only = ExampleGradients(
        one.gradients.losses[place : place + 1],
        one.gradients.scores[place : place + 1],
        [errors[place : place + 1] for errors in one.gradients.errors],
        [inputs[place : place + 1] for inputs in one.gradients.inputs],
    )
    return float(products_with(only, vectors)[0, 0])
