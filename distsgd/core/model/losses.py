"""The two losses of a linear classifier, and their gradients with respect to the scores.

Each loss is a function ``loss(scores, labels, gradient) -> losses``: it writes the gradient
of every example's loss with respect to its scores and returns the examples' losses. Nothing
is averaged here; sums and means over examples belong to the slot and to the server.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from distsgd.core.arrays import Floats, Ints

__all__ = ["LOSSES", "Loss", "penalty", "softmax", "softmax_probabilities", "svm"]

Loss = Callable[[Floats, Ints, Floats], Floats]

DELTA = 1.0
"""Margin of the multiclass SVM loss."""


def softmax(scores: Floats, labels: Ints, gradient: Floats) -> Floats:
    """Cross-entropy of the softmax: L_i = -s_y + log sum_j exp(s_j).

    dL_i/ds_j = p_j - 1(j = y), with p the softmax of s. The row maximum is subtracted first,
    so that scores of any finite size give finite losses.

    Args:
        scores: shape (examples, classes).
        labels: shape (examples,), integers below classes.
        gradient: shape (examples, classes), overwritten with dL_i/ds.

    Returns:
        L_i of every example, shape (examples,).

    Source: CS231n notes, "Softmax classifier"; Bishop 2006, eq. 4.108-4.109.
    """
    rows = _numbers(len(labels))
    np.subtract(scores, np.maximum.reduce(scores, axis=1, keepdims=True), out=gradient)
    shifted = gradient[rows, labels]
    np.exp(gradient, out=gradient)
    total = _over_classes(gradient)
    np.divide(gradient, total, out=gradient)
    gradient[rows, labels] -= 1
    losses = total[:, 0]
    np.log(losses, out=losses)
    return np.subtract(losses, shifted, out=losses)


def svm(scores: Floats, labels: Ints, gradient: Floats) -> Floats:
    """Multiclass hinge loss: L_i = sum over j != y of max(0, s_j - s_y + 1).

    dL_i/ds_j = 1(s_j - s_y + 1 > 0) for j != y, and dL_i/ds_y = minus their number. At a kink
    (a margin of exactly 0) the subgradient 0 is taken.

    Args and result as in `softmax`.

    Source: Weston and Watkins 1999; CS231n notes, "Multiclass Support Vector Machine loss".
    """
    rows = _numbers(len(labels))
    margins = scores - scores[rows, labels][:, None]
    margins += DELTA
    margins[rows, labels] = 0
    np.maximum(margins, 0, out=margins)
    np.greater(margins, 0, out=gradient, casting="unsafe")
    gradient[rows, labels] = -gradient.sum(axis=1)
    return _over_classes(margins)[:, 0]


@lru_cache(maxsize=4)
def _numbers(count: int) -> Ints:
    """0 to count - 1, read-only."""
    numbers = np.arange(count)
    numbers.flags.writeable = False
    return numbers


def _over_classes(values: Floats) -> Floats:
    """Sum over the classes, shape (examples, 1).

    Where classes lie farther apart than examples, as in a kernel, numpy adds them in order, but
    those of a single example pairwise; in order too, its bits are the same alone and with others.
    """
    total: Floats
    if len(values) == 1:
        total = np.add.accumulate(values, axis=1)[:, -1:]
    else:
        total = np.add.reduce(values, axis=1, keepdims=True)
    return total


LOSSES: dict[str, Loss] = {"softmax": softmax, "svm": svm}


def softmax_probabilities(scores: Floats) -> Floats:
    """exp(s_j) / sum exp(s) for each row of scores, shape (examples, classes)."""
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def penalty(weights: Floats, features: int, regularization: float) -> float:
    """L2 penalty, lambda * sum of W**2 over the weights; the bias is not penalised.

    Args:
        weights: shape (classes, columns), of which the first ``features`` are weights.
        features: number of pixels (columns before the bias).
        regularization: lambda.

    Source: CS231n notes, "Regularization": R(W) = sum_k sum_l W_kl**2.
    """
    part = weights[:, :features].astype(np.float64, copy=False)
    return float(regularization * np.sum(part * part))
