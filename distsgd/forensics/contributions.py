"""What single examples gave to an update: their gradients, at the W that was read, and their share.

An update moves W by the learning rate times a mean over its examples, so an example's own part of
the step is its gradient times ``rate * share``. Local steps are made at a W of the replica's own,
which is recomputed here (to rounding). Compression, which mixes the gradients of a minibatch, is
left out: what it holds back is sent later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats, Ints, Values
from distsgd.core.messages import Lease
from distsgd.core.model import Preprocessing
from distsgd.core.model.example_gradients import ExampleGradients, example_gradients
from distsgd.core.plan import EpochOrder, Plan
from distsgd.data.split import Split
from distsgd.engine.job import Job
from distsgd.engine.worker import labels_of
from distsgd.proof.replayer import Step

__all__ = ["Contribution", "Contributions", "features_of_rows"]


@dataclass(frozen=True, eq=False)
class Contribution:
    """Examples of one step of the plan that one worker computed at one W.

    Attributes:
        worker: who.
        lease: what it was asked for.
        step: of the plan.
        first: number of the first slot.
        rows: numbers of the training examples, shape (examples,).
        labels: of them.
        factors: of them; None if all count alike.
        weights: W, flat and padded, valid until the next contribution.
        gradients: of the examples, times their factors.
        share: of each in the mean that the update subtracts.
        rate: learning rate of the step.
    """

    worker: int
    lease: Lease
    step: int
    first: int
    rows: NDArray[np.int64]
    labels: Ints
    factors: Floats | None
    weights: Floats
    gradients: ExampleGradients
    share: float
    rate: float


class Contributions:
    """Recomputes the contributions of updates.

    Args:
        split: the training examples.
    """

    def __init__(self, split: Split) -> None:
        self._split = split
        self._orders: dict[Plan, EpochOrder] = {}
        self._pixels = np.empty((0, 0), split.dtype)
        self._features: Floats = np.empty((0, 0))

    def of(self, step: Step) -> Iterator[Contribution]:
        """The contributions to an update, in the order in which they were added.

        Their arrays are valid until the next one.
        """
        for worker, lease in step.record.contributions:
            read = step.reads[lease.version]
            if lease.replicas:
                yield from self._local(step, worker, lease, read)
            else:
                share = 1 / step.examples
                rate = step.learning_rate
                yield self._of(step.job, worker, lease, lease.piece, read, share, rate)

    def rows(self, job: Job, step: int, first: int, last: int) -> NDArray[np.int64]:
        """The examples of slots [first, last) of a step."""
        plan = job.plan
        if first == last:
            return np.empty(0, np.int64)
        order = self._orders.setdefault(plan, EpochOrder(plan))
        low, high = plan.slot(step, first)[0], plan.slot(step, last - 1)[1]
        return order.examples(plan.epoch_of(step), low, high)

    def _local(self, step: Step, worker: int, lease: Lease, read: Floats) -> Iterator[Contribution]:
        """The steps of a replica."""
        job, replica = step.job, step.job.replica(read)
        pieces = [(piece, len(self.rows(job, *piece))) for piece in lease.slots(job.plan)]
        share = sum(count for _, count in pieces) / step.examples  # of the replica
        for piece, count in pieces:
            if not count:
                continue
            rate = job.schedule.at(piece[0])
            found = self._of(job, worker, lease, piece, replica.weights, share / count, rate)
            yield found
            total = [
                (errors.T @ inputs).reshape(-1)
                for errors, inputs in zip(
                    found.gradients.errors, found.gradients.inputs, strict=True
                )
            ]
            replica.apply(np.concatenate(total), count, piece[0])

    def _of(
        self, job: Job, worker: int, lease: Lease, piece: tuple[int, int, int], weights: Floats,
        share: float, rate: float,
    ) -> Contribution:  # fmt: skip
        rows = self.rows(job, *piece)
        labels, factors = labels_of(job, self._split, rows)
        gradients = example_gradients(
            job.architecture, weights, self.features(job, rows), labels, job.loss, factors
        )
        return Contribution(
            worker, lease, piece[0], piece[1], rows, labels, factors, weights, gradients, share,
            rate,
        )  # fmt: skip

    def features(self, job: Job, rows: NDArray[np.int64]) -> Floats:
        """The features of training examples, in a buffer that the next call overwrites."""
        shape = max(len(rows), len(self._pixels)), job.features
        if self._pixels.shape != shape or self._features.dtype != job.dtype:
            self._pixels = np.empty(shape, self._split.dtype)
            self._features = job.preprocessing.buffer(shape[0], job.dtype)
        pixels, features = self._pixels[: len(rows)], self._features[: len(rows)]
        self._split.gather(rows, pixels)
        job.preprocessing.fill(pixels, features)
        return features


def features_of_rows(preprocessing: Preprocessing, pixels: Values, dtype: str) -> Floats:
    """The features of rows, shape (rows, columns), in an array of their own."""
    out = preprocessing.buffer(len(pixels), dtype)
    preprocessing.fill(pixels, out)
    return out
