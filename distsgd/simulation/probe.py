"""Measuring W during a simulation, on a fixed part of each split."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from distsgd.core.arrays import Floats, Ints, Values
from distsgd.core.model import SlotLoss, measure
from distsgd.data.dataset import Dataset
from distsgd.data.split import Split
from distsgd.engine.job import Job
from distsgd.errors import UsageError
from distsgd.spelling import spelled

__all__ = ["Measuring", "Probe"]

_AN_EPOCH = 20


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """When to measure, on what, and when to stop.

    Attributes:
        every: updates between two measurements; None for about 20 an epoch.
        examples: how many of each split, evenly spaced; all, if it has fewer.
        target_loss: training loss to stop at, or None.
        target_accuracy: test accuracy to stop at, from 0 to 1, or None.
    """

    every: int | None = None
    examples: int = 2000
    target_loss: float | None = None
    target_accuracy: float | None = None

    def __post_init__(self) -> None:
        for name in ("every", "examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(
                    f"{spelled(f'measure_{name}')} cannot be {value}", "Give 1 or more"
                )
        loss, accuracy = self.target_loss, self.target_accuracy
        if loss is not None and not (math.isfinite(loss) and loss > 0):
            raise UsageError(f"{spelled('target_loss')} cannot be {loss}", "Give a number above 0")
        if accuracy is not None and not 0 < accuracy <= 1:
            raise UsageError(
                f"{spelled('target_accuracy')} cannot be {accuracy}",
                "Give a share above 0 and up to 1, such as 0.4",
            )

    def interval(self, steps_per_epoch: int) -> int:
        """Updates between two measurements."""
        return self.every or max(1, round(steps_per_epoch / _AN_EPOCH))


class Probe:
    """Training loss and test accuracy of W.

    Args:
        job: what is trained.
        dataset: on what.
        examples: how many of each split to measure on.
    """

    def __init__(self, job: Job, dataset: Dataset, examples: int) -> None:
        self._job, self._dataset = job, dataset
        self._train = _evenly(dataset.train, examples, job.features)
        self._test = _evenly(dataset.test, examples, job.features)

    def measure(self, weights: Floats) -> tuple[float, float]:
        """Training loss (mean L_i plus penalty) and test accuracy, on the fixed parts.

        Args:
            weights: flat W, shape (parameters,).
        """
        job = self._job
        with np.errstate(all="ignore"):
            train = self._measured(weights, [self._train])
            test = self._measured(weights, [self._test])
            extra = job.architecture.penalty(weights, job.regularization)
        return train.loss / train.examples + extra, test.correct / test.examples

    def test_accuracy(self, weights: Floats) -> float:
        """Test accuracy on the whole test set."""
        with np.errstate(all="ignore"):
            found = self._measured(weights, self._dataset.test.batches())
        return found.correct / found.examples

    def _measured(self, weights: Floats, batches: Iterable[tuple[Values, Ints]]) -> SlotLoss:
        job = self._job
        return measure(job.architecture, weights, job.loss, job.preprocessing, batches)[0]


def _evenly(split: Split, examples: int, features: int) -> tuple[Values, Ints]:
    """Rows and labels of examples that are evenly spaced over a split."""
    count = min(examples, len(split))
    rows = np.arange(count, dtype=np.int64) * len(split) // count
    pixels, found = np.empty((count, features), dtype=split.dtype), []
    low = done = 0
    for part, labels in split.batches():  # of a split that is streamed, none is kept
        here = rows[(rows >= low) & (rows < low + len(part))] - low
        pixels[done : done + len(here)] = part[here]
        found.append(labels[here])
        low, done = low + len(part), done + len(here)
    return pixels, np.concatenate(found)
