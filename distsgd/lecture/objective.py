"""The objective of the lecture in two matrix products, for experiments in float64."""

from __future__ import annotations

import numpy as np

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model.losses import LOSSES
from distsgd.lecture.material import Examples

__all__ = ["gradient_of", "loss_and_gradient", "loss_of"]


def loss_and_gradient(
    weights: Floats, features: Floats, labels: Ints, loss: str
) -> tuple[float, Floats]:
    """L = 1/n sum_i L_i(W x_i, y_i), and dL/dW = 1/n sum_i (dL_i/ds) x_i'.

    Args:
        weights: W, shape (classes, columns).
        features: X, shape (n, columns).
        labels: y, shape (n,).
        loss: "softmax" or "svm".

    Returns:
        L, and dL/dW of shape (classes, columns), in the type of W.

    Source: CS231n notes, "Optimization", computing the gradient analytically.
    """
    scores = features @ weights.T
    by_score = np.empty_like(scores)
    losses = LOSSES[loss](scores, labels, by_score)
    return float(losses.mean()), by_score.T @ features / len(labels)


def loss_of(weights: Floats, examples: Examples, loss: str) -> float:
    """L over all of the examples."""
    scores = examples.features @ weights.T
    return float(LOSSES[loss](scores, examples.labels, np.empty_like(scores)).mean())


def gradient_of(weights: Floats, examples: Examples, loss: str) -> Floats:
    """dL/dW over all of the examples, shape (classes, columns)."""
    return loss_and_gradient(weights, examples.features, examples.labels, loss)[1]
