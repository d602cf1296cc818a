"""How much each training example helped or hurt a prediction, summed over the updates of a journal.

The influence of a training example z on a test example z' is, over all updates t that z took part
in, the sum of

    learning rate of t * share of z in the mean * <gradient of z' at W, gradient of z at W>

at the W that was read: to first order, by how much z's own part of the steps lowered the loss of
z'. It is TracIn (Pruthi, Liu, Kale and Sundararajan, "Estimating Training Data Influence by Tracing
Gradient Descent", NeurIPS 2020) over every real update, as the journal has them all, where theirs
is over checkpoints. Above 0: z helped; below 0: it hurt.

With momentum a gradient acts in later updates too: its learning rate is the sum of theirs, times
mu^k. With adagrad and adam each entry of the gradient is divided as that update did (and adam's
mean is taken to be divided so in later updates too). The penalty is no example's. That later
updates undo part of an earlier one is not seen here; `distsgd.forensics.unrolled` sees it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model.example_gradients import (
    ExampleGradients,
    example_gradients,
    inner_products,
    products_with,
    summed,
)
from distsgd.engine.job import Job
from distsgd.forensics.contributions import Contribution, Contributions
from distsgd.proof.replayer import Step
from distsgd.proof.timeline import Timeline
from distsgd.runs.opened_run import OpenedRun

__all__ = ["Influence", "Targets", "tracin"]

Array = NDArray[np.float64]

_EPSILON, _BETA2 = 1e-8, 0.999
"""Of the update rules."""

_FORGOTTEN = 1e-7
"""Of a gradient in the velocity, below which it is left out."""

_FEW = 64
"""Targets of one example each up to which inner products are taken example by example."""

_ALIKE_BYTES = 256 << 20
"""Most memory for the inner products of features, which stay the same over epochs."""


@dataclass(frozen=True, eq=False)
class Targets:
    """What influences are on: the losses of some examples, or means of them.

    Attributes:
        features: of the examples, shape (examples, columns).
        labels: shape (examples,).
        shares: of each example in each target, shape (examples, targets).
    """

    features: Floats
    labels: Ints
    shares: Floats

    @classmethod
    def single(cls, features: Floats, labels: Ints) -> Targets:
        """Each example a target of its own."""
        return cls(features, labels, np.eye(len(labels), dtype=features.dtype))

    @classmethod
    def mean(cls, features: Floats, labels: Ints) -> Targets:
        """One target: the mean loss of all examples."""
        share = np.full((len(labels), 1), 1 / max(1, len(labels)), features.dtype)
        return cls(features, labels, share)

    @property
    def count(self) -> int:
        """How many targets there are."""
        return int(self.shares.shape[1])

    @property
    def are_single(self) -> bool:
        """Whether each is one example, and they are few."""
        return len(self.labels) == self.count <= _FEW

    def gradients(self, job: Job, weights: Floats) -> ExampleGradients:
        """Of the examples, at some W."""
        return example_gradients(job.architecture, weights, self.features, self.labels, job.loss)


@dataclass(frozen=True, eq=False)
class Influence:
    """The influence of every training example.

    Attributes:
        values: shape (training examples, targets), in units of the loss: above 0 helped.
        counts: in how many updates each took part, shape (training examples,).
        updates: how many updates were looked at.
        first: number of the first of them.
        ignored: what the method leaves out of account, in words.
    """

    values: Array
    counts: Ints
    updates: int
    first: int
    ignored: tuple[str, ...] = ()


def ignored_of(job: Job) -> tuple[str, ...]:
    """What no method takes into account of how a job trains."""
    return ("the compression of gradients",) if job.compress != "none" else ()


def tracin(run: OpenedRun, targets: Targets, last: int | None = None) -> Influence:
    """The influence of each training example on each target, by TracIn over all updates.

    Args:
        run: the run.
        targets: what is explained.
        last: the update up to which steps count; None for the last of the run.

    Raises:
        UsageError: the run has no such update.
        RunError: it cannot be recomputed.
    """
    timeline = Timeline(run)
    first, last = timeline.first + 1, timeline.last if last is None else last
    found = _Tracer(run, targets)
    job: Job | None = None
    for step in timeline.steps(first, last) if last >= first else ():
        found.add(step)
        job = step.job
    found.settle()
    ignored = list(ignored_of(job)) if job is not None else []
    if job is not None and job.optimizer == "adam":
        ignored.append("that adam divides a gradient anew in each later update")
    return Influence(found.values, found.counts, max(0, last - first + 1), first, tuple(ignored))


class _Tracer:
    """Adds up inner products, update by update."""

    def __init__(self, run: OpenedRun, targets: Targets) -> None:
        rows = len(run.dataset.train)
        self._contributions, self._targets = Contributions(run.dataset.train), targets
        self.values, self.counts = np.zeros((rows, targets.count)), np.zeros(rows, np.int64)
        self._pending: deque[_Pending] = deque()
        self._squares: Floats | None = None
        size = rows * len(targets.labels) * targets.features.itemsize
        self._alike: Floats | None = None
        if targets.are_single and size <= _ALIKE_BYTES:
            self._alike = np.full((rows, len(targets.labels)), np.nan, targets.features.dtype)

    def add(self, step: Step) -> None:
        """What an update did."""
        job = step.job
        divisors = self._divisors(step)
        seen: dict[int, ExampleGradients] = {}
        for one in self._contributions.of(step):
            read = one.lease.version
            if one.lease.replicas or read not in seen:
                seen[read] = self._targets.gradients(job, one.weights)
            products = self._products(one, seen[read], divisors, job)
            own = _Pending(one.rows, products.astype(np.float64) * one.share)
            np.add.at(self.counts, one.rows, 1)
            if job.momentum and job.optimizer in ("momentum", "nesterov", "adam"):
                self._pending.append(own)
            else:
                own.weight = one.rate
                self._flush(own)
        for pending in self._pending:
            pending.grow(job, step)
        while self._pending and self._pending[0].left < _FORGOTTEN:
            self._flush(self._pending.popleft())

    def settle(self) -> None:
        """Count what is still in the velocity."""
        while self._pending:
            self._flush(self._pending.popleft())

    def _flush(self, pending: _Pending) -> None:
        np.add.at(self.values, pending.rows, pending.products * pending.weight)

    def _products(
        self, one: Contribution, theirs: ExampleGradients, divisors: Floats | None, job: Job
    ) -> Floats:
        """Shape (examples, targets)."""
        if self._targets.are_single and divisors is None:
            return inner_products(one.gradients, theirs, self._alike_of(one, theirs))
        vectors = summed(theirs, self._targets.shares)
        if divisors is not None:
            parts = job.architecture.split(divisors)
            vectors = [vector / part for vector, part in zip(vectors, parts, strict=True)]
        return products_with(one.gradients, vectors)

    def _alike_of(self, one: Contribution, theirs: ExampleGradients) -> Floats | None:
        """x . x' of features, computed when an example is first met."""
        if self._alike is None:
            return None
        found = self._alike[one.rows]
        if np.isnan(found[:, 0]).any():
            found = one.gradients.inputs[0] @ theirs.inputs[0].T
            self._alike[one.rows] = found
        return found

    def _divisors(self, step: Step) -> Floats | None:
        """What each entry of a gradient is divided by in an update."""
        job = step.job
        if job.optimizer not in ("adagrad", "adam"):
            return None
        gradient = step.gradient + job.decay() * step.before
        squares = np.zeros_like(gradient) if self._squares is None else self._squares
        if job.optimizer == "adagrad":
            self._squares = squares + gradient**2
            return np.sqrt(self._squares) + gradient.dtype.type(_EPSILON)
        kind = gradient.dtype.type
        self._squares = kind(_BETA2) * squares + kind(1 - _BETA2) * gradient**2
        grown = self._squares / kind(1 - _BETA2**step.record.version)
        return np.sqrt(grown) + kind(_EPSILON)


class _Pending:
    """Products of gradients that are still part of the velocity.

    Args:
        rows: the examples.
        products: shape (examples, targets), times their share.

    Attributes:
        weight: the learning rates that they have been multiplied by.
        left: of the gradient in the velocity after the update that was seen last.
    """

    def __init__(self, rows: NDArray[np.int64], products: Array) -> None:
        self.rows, self.products = rows, products
        self.weight, self.left = 0.0, 1.0
        self._fresh = True

    def grow(self, job: Job, step: Step) -> None:
        """Another update, the first of which is its own."""
        rate, momentum = step.learning_rate, job.momentum
        if job.optimizer == "adam":
            rate *= (1 - momentum) / (1 - momentum**step.record.version)
        if not self._fresh:
            self.left *= momentum
        if job.optimizer == "nesterov":
            self.weight += rate * (self.left * momentum + self._fresh)
        else:
            self.weight += rate * self.left
        self._fresh = False
