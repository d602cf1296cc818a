"""The losses with the same bits on every machine, and dL/ds on a grid; see `grids`.

The formulas and arguments are those of `losses`. Scores are exact or rounded elementwise, sums over
the classes are exact.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model.grids import MANTISSA, bits
from distsgd.core.model.losses import DELTA, Loss
from distsgd.core.portable import exp, log, rounded

__all__ = ["exact_loss", "exact_sum"]


def exact_sum(values: Floats) -> float:
    """The sum of all values, rounded once whatever their order; NaN if it is not finite."""
    try:
        return math.fsum(values.reshape(-1).tolist())
    except (ValueError, OverflowError):
        return math.nan


def _softmax(scores: Floats, labels: Ints, gradient: Floats, *, fraction: int) -> Floats:
    """See `losses.softmax`.

    exp(s_j - max s) is rounded to multiples of 2**-(53 - bits(C)), so that its sum over the classes
    is exact; p_j to multiples of 2**-fraction.
    """
    rows = np.arange(len(labels))
    np.subtract(scores, scores.max(axis=1, keepdims=True), out=gradient)
    shifted = gradient[rows, labels]
    exp(gradient, out=gradient)
    rounded(gradient, MANTISSA - 1 - bits(scores.shape[1]), out=gradient)
    total = gradient.sum(axis=1, keepdims=True)
    gradient /= total
    rounded(gradient, fraction, out=gradient)
    gradient[rows, labels] -= 1
    return log(total[:, 0]) - shifted


def _svm(scores: Floats, labels: Ints, gradient: Floats) -> Floats:
    """See `losses.svm`; dL/ds is a whole number. Hinges are added in the order of the classes."""
    rows = np.arange(len(labels))
    margins = scores - scores[rows, labels][:, None]
    margins += DELTA
    margins[rows, labels] = 0
    np.maximum(margins, 0, out=margins)
    np.greater(margins, 0, out=gradient, casting="unsafe")
    gradient[rows, labels] = -gradient.sum(axis=1)
    losses: Floats = np.add.accumulate(margins, axis=1)[:, -1]
    return losses


def exact_loss(name: str, fraction: int) -> Loss:
    """The loss of a name, for exact arithmetic.

    Args:
        name: "softmax" or "svm".
        fraction: dL/ds of softmax is a multiple of 2**-fraction.
    """
    return partial(_softmax, fraction=fraction) if name == "softmax" else _svm
