"""The gradients of both losses, formula by formula, for one example.

With x of shape (columns,), its scores s = W x of shape (classes,) and its label y. The fast ones,
for many examples at once, are `distsgd.core.model.losses` and `distsgd.core.model.slot_gradient`.

Source: CS231n notes, "Optimization", computing the gradient analytically; "Linear classification".
"""

from __future__ import annotations

import numpy as np

from distsgd.core.arrays import Floats, Ints
from distsgd.lecture.plain.chain_rule import chain_through_jacobian

__all__ = [
    "EXAMPLE_GRADIENT", "EXAMPLE_LOSS", "GRADIENT_BY_SCORES", "cross_entropy_by_probability",
    "mean_gradient", "probabilities", "score", "softmax_example_gradient", "softmax_example_loss",
    "softmax_gradient_by_scores", "softmax_jacobian", "svm_correct_class_gradient",
    "svm_example_gradient", "svm_example_loss", "svm_gradient_by_scores", "svm_margins",
    "svm_other_class_gradient",
]  # fmt: skip

DELTA = 1.0


def score(weights: Floats, x: Floats) -> Floats:
    """s = W x, shape (classes,)."""
    s: Floats = weights @ x
    return s


def svm_margins(s: Floats, y: int) -> Floats:
    """m_j = s_j - s_y + 1 for j != y, and 0 for j = y, where there is no term."""
    margins: Floats = s - s[y] + DELTA
    margins[y] = 0
    return margins


def svm_example_loss(s: Floats, y: int) -> float:
    """L_i = sum over j != y of max(0, s_j - s_y + 1)."""
    return float(np.maximum(0, svm_margins(s, y)).sum())


def svm_correct_class_gradient(s: Floats, y: int, x: Floats) -> Floats:
    """dL_i/dw_y = -(sum over j != y of 1(s_j - s_y + 1 > 0)) x_i."""
    row: Floats = -float(np.count_nonzero(svm_margins(s, y) > 0)) * x
    return row


def svm_other_class_gradient(s: Floats, y: int, j: int, x: Floats) -> Floats:
    """dL_i/dw_j = 1(s_j - s_y + 1 > 0) x_i for j != y; at a kink the subgradient 0."""
    row: Floats = float(svm_margins(s, y)[j] > 0) * x
    return row


def svm_example_gradient(s: Floats, y: int, x: Floats) -> Floats:
    """dL_i/dW: the two formulas, a row for each class."""
    return np.stack([
        svm_correct_class_gradient(s, y, x) if j == y else svm_other_class_gradient(s, y, j, x)
        for j in range(len(s))
    ])  # fmt: skip


def svm_gradient_by_scores(s: Floats, y: int) -> Floats:
    """dL_i/ds: the two formulas for x_i = 1, as s_j = w_j x_i."""
    return svm_example_gradient(s, y, np.ones(1))[:, 0]


def probabilities(s: Floats) -> Floats:
    """p_j = exp(s_j) / sum_k exp(s_k); the largest score is subtracted first."""
    powers = np.exp(s - s.max())
    p: Floats = powers / powers.sum()
    return p


def softmax_example_loss(s: Floats, y: int) -> float:
    """L_i = -log p_y = -s_y + log sum_j exp(s_j)."""
    return float(s.max() + np.log(np.exp(s - s.max()).sum()) - s[y])


def softmax_jacobian(p: Floats) -> Floats:
    """dp_j/ds_k = p_j (1(j = k) - p_k), shape (classes, classes)."""
    return np.diag(p) - np.outer(p, p)


def cross_entropy_by_probability(p: Floats, y: int) -> Floats:
    """dL_i/dp_j = -1(j = y) / p_y."""
    slopes = np.zeros_like(p)
    slopes[y] = -1 / p[y]
    return slopes


def softmax_gradient_by_scores(s: Floats, y: int) -> Floats:
    """dL_i/ds = J' dL_i/dp, by the chain rule; it comes to p_j - 1(j = y)."""
    p = probabilities(s)
    return chain_through_jacobian(cross_entropy_by_probability(p, y), softmax_jacobian(p))


def softmax_example_gradient(s: Floats, y: int, x: Floats) -> Floats:
    """dL_i/dW = (dL_i/ds) x_i', as ds_j/dw_j = x_i."""
    by_w: Floats = np.outer(softmax_gradient_by_scores(s, y), x)
    return by_w


EXAMPLE_LOSS = {"svm": svm_example_loss, "softmax": softmax_example_loss}
"""L_i of (s, y)."""
EXAMPLE_GRADIENT = {"svm": svm_example_gradient, "softmax": softmax_example_gradient}
"""dL_i/dW of (s, y, x)."""
GRADIENT_BY_SCORES = {"svm": svm_gradient_by_scores, "softmax": softmax_gradient_by_scores}
"""dL_i/ds of (s, y)."""


def mean_gradient(weights: Floats, features: Floats, labels: Ints, loss: str) -> Floats:
    """dL/dW = 1/n sum_i dL_i/dW, example by example."""
    total = np.zeros_like(weights)
    for x, y in zip(features, labels, strict=True):
        total += EXAMPLE_GRADIENT[loss](score(weights, x), int(y), x)
    return total / len(labels)
