"""The losses with the same bits on every machine, and dL/ds on a grid; see `grids`.

The formulas and arguments are those of `losses`. Scores are exact or rounded elementwise, sums over
the classes are exact.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model.grids import MANTISSA, bits
from distsgd.core.model.losses import DELTA
from distsgd.core.portable import exp, log, rounded

__all__ = ["ExactLoss", "exact_loss", "exact_sum"]


def exact_sum(values: Floats) -> float:
    """The sum of all values, rounded once whatever their order; NaN if it is not finite."""
    try:
        return math.fsum(values.reshape(-1).tolist())
    except (ValueError, OverflowError):
        return math.nan


class ExactLoss(ABC):
    """A loss in two steps, so that logarithms are computed for many examples at once."""

    @abstractmethod
    def begin(self, scores: Floats, labels: Ints, gradient: Floats) -> tuple[Floats, Floats]:
        """Write dL/ds, and return what `end` makes the losses of, shape (examples,) each.

        Args:
            scores: shape (examples, classes).
            labels: shape (examples,).
            gradient: shape (examples, classes), overwritten.
        """

    @staticmethod
    @abstractmethod
    def end(first: Floats, second: Floats) -> Floats:
        """The losses, from what `begin` has returned."""

    def __call__(self, scores: Floats, labels: Ints, gradient: Floats) -> Floats:
        """The loss as one function, see `losses.Loss`."""
        return self.end(*self.begin(scores, labels, gradient))


class _Softmax(ExactLoss):
    """See `losses.softmax`.

    exp(s_j - max s) is rounded to multiples of 2**-(52 - bits(C)), so that its sum over the classes
    is exact; p_j to multiples of 2**-fraction.
    """

    def __init__(self, fraction: int) -> None:
        self._fraction = fraction

    def begin(self, scores: Floats, labels: Ints, gradient: Floats) -> tuple[Floats, Floats]:
        """See the class; the sums of powers, and s_y - max s."""
        rows = np.arange(len(labels))
        np.subtract(scores, scores.max(axis=1, keepdims=True), out=gradient)
        shifted = gradient[rows, labels]
        exp(gradient, out=gradient)
        rounded(gradient, MANTISSA - 1 - bits(scores.shape[1]), out=gradient)
        total = gradient.sum(axis=1, keepdims=True)
        np.divide(gradient, total, out=gradient)
        rounded(gradient, self._fraction, out=gradient)
        gradient[rows, labels] -= 1
        return total[:, 0], shifted

    @staticmethod
    def end(first: Floats, second: Floats) -> Floats:
        """log sum_j exp(s_j - max s) - (s_y - max s)."""
        return log(first) - second


class _Svm(ExactLoss):
    """See `losses.svm`; dL/ds is a whole number. Hinges are added in the order of the classes."""

    def begin(self, scores: Floats, labels: Ints, gradient: Floats) -> tuple[Floats, Floats]:
        """See the class; the losses, twice."""
        rows = np.arange(len(labels))
        margins = scores - scores[rows, labels][:, None]
        margins += DELTA
        margins[rows, labels] = 0
        np.maximum(margins, 0, out=margins)
        np.greater(margins, 0, out=gradient, casting="unsafe")
        gradient[rows, labels] = -gradient.sum(axis=1)
        losses: Floats = np.add.accumulate(margins, axis=1)[:, -1]
        return losses, losses

    @staticmethod
    def end(first: Floats, second: Floats) -> Floats:
        """The losses."""
        return first


def exact_loss(name: str, fraction: int) -> ExactLoss:
    """The loss of a name, for exact arithmetic.

    Args:
        name: "softmax" or "svm".
        fraction: dL/ds of softmax is a multiple of 2**-fraction.
    """
    return _Softmax(fraction) if name == "softmax" else _Svm()
