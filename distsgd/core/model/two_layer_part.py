"""Two layers by their definition, in float64: loss and gradient, plainly written.

h = max(0, W1 x), s = W2 (h, 1): the bias trick in both layers, so x ends in a 1. This is what the
kernel is tested against, and what to use where neither speed nor bits matter.
"""

from __future__ import annotations

import numpy as np

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model.losses import LOSSES, penalty

__all__ = ["two_layer_loss_and_gradient", "two_layer_scores", "with_bias"]


def with_bias(values: Floats) -> Floats:
    """Each row with a 1 at its end, as float64: the input of a layer ("bias trick")."""
    return np.hstack([np.asarray(values, dtype=np.float64), np.ones((len(values), 1))])


def two_layer_scores(w1: Floats, w2: Floats, features: Floats) -> Floats:
    """s = W2 (max(0, W1 x), 1) for every row x of the features.

    Args:
        w1: shape (hidden, features + 1), the last column the bias.
        w2: shape (classes, hidden + 1), the last column the bias.
        features: shape (examples, features + 1), the last column being 1; see `with_bias`.

    Returns:
        shape (examples, classes), float64.
    """
    hidden = np.maximum(0, features @ w1.T)
    scores: Floats = with_bias(hidden) @ w2.T
    return scores


def two_layer_loss_and_gradient(
    w1: Floats,
    w2: Floats,
    features: Floats,
    labels: Ints,
    loss: str = "softmax",
    regularization: float = 0.0,
) -> tuple[float, Floats, Floats]:
    """Mean L_i + lambda (sum W1**2 + sum W2**2), without the biases, and its two gradients.

    With g = dL_i/ds of each example, by the chain rule: dL_i/dW2 = g (h, 1)', dL_i/dh = W2' g,
    dL_i/da = dL_i/dh where a = W1 x > 0 and 0 elsewhere, also at a = 0 (a subgradient of the
    kink), and dL_i/dW1 = (dL_i/da) x'.

    Args:
        w1: shape (hidden, features + 1), the last column the bias.
        w2: shape (classes, hidden + 1), the last column the bias.
        features: shape (examples, features + 1), the last column being 1; see `with_bias`.
        labels: shape (examples,), integers below classes.
        loss: "softmax" or "svm".
        regularization: lambda.

    Returns:
        the loss, its gradient with respect to W1, and that with respect to W2, all in float64.

    Source: CS231n notes, "Backpropagation, Intuitions".
    """
    before = features @ w1.T
    hidden = with_bias(np.maximum(0, before))
    scores = hidden @ w2.T
    by_score = np.empty_like(scores)
    losses = LOSSES[loss](scores, labels, by_score)
    by_hidden = by_score @ w2[:, :-1]
    by_before = np.where(before > 0, by_hidden, 0)
    by_w1, by_w2 = by_before.T @ features / len(labels), by_score.T @ hidden / len(labels)
    by_w1[:, :-1] += 2 * regularization * w1[:, :-1]
    by_w2[:, :-1] += 2 * regularization * w2[:, :-1]
    extra = sum(penalty(w, w.shape[1] - 1, regularization) for w in (w1, w2))
    return float(losses.mean() + extra), by_w1, by_w2
