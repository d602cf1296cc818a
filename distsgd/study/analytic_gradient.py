"""The gradients of both losses, formula by formula, for one example.

With x of shape (columns,), its scores s = W x of shape (classes,) and its label y. The fast ones,
for many examples at once, are `distsgd.core.losses` and `distsgd.core.slot_gradient`.

Source: CS231n notes, "Optimization", computing the gradient analytically; "Linear classification".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from distsgd.core.arrays import Floats, Ints
from distsgd.study.chain_rule import chain_through_jacobian
from distsgd.study.material import check_limit, first_examples, open_dataset
from distsgd.study.numerical_gradient import central_gradient
from distsgd.study.plain_objective import loss_and_gradient

__all__ = [
    "FormulaRow", "compare_formulas", "cross_entropy_by_probability", "mean_gradient",
    "probabilities", "score", "softmax_example_gradient", "softmax_example_loss",
    "softmax_gradient_by_scores", "softmax_jacobian", "svm_correct_class_gradient",
    "svm_example_gradient", "svm_example_loss", "svm_margins", "svm_other_class_gradient",
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


_LOSS = {"svm": svm_example_loss, "softmax": softmax_example_loss}
_GRADIENT = {"svm": svm_example_gradient, "softmax": softmax_example_gradient}


def mean_gradient(weights: Floats, features: Floats, labels: Ints, loss: str) -> Floats:
    """dL/dW = 1/n sum_i dL_i/dW, example by example."""
    total = np.zeros_like(weights)
    for x, y in zip(features, labels, strict=True):
        total += _GRADIENT[loss](score(weights, x), int(y), x)
    return total / len(labels)


@dataclass(frozen=True, kw_only=True)
class FormulaRow:
    """One formula, on real images.

    Attributes:
        formula: what it is.
        fast: largest difference to what training computes with, relative to the largest entry.
        numerical: largest difference to central differences, likewise; None where the formula
            is only a part of the gradient.
    """

    formula: str
    fast: float
    numerical: float | None


def compare_formulas(
    dataset: str = "cifar10", *, examples: int = 20, seed: int = 0
) -> tuple[FormulaRow, ...]:
    """Compare each formula with the fast gradients, and with central differences by the scores.

    Args:
        dataset: where the images come from.
        examples: how many of its first training images.
        seed: of W = randn * 0.01; pixels are centred and divided by 64.

    Raises:
        UsageError: an argument cannot be used.
    """
    opened = open_dataset(dataset)
    check_limit("--examples", examples, len(opened.train))
    found = first_examples(opened, "train", examples, scale=64.0)
    weights = np.random.default_rng(seed).standard_normal(found.shape) * 1e-2
    rows = []
    for loss, by_scores in (("svm", _svm_by_scores), ("softmax", softmax_gradient_by_scores)):
        off_fast, off_numerical = 0.0, 0.0
        for x, y in zip(found.features, found.labels.tolist(), strict=True):
            s = score(weights, x)
            one = loss_and_gradient(weights, x[None], np.array([y]), loss)[1]
            plain = _GRADIENT[loss](s, y, x)
            off_fast = max(off_fast, _off(plain, one))
            slopes = central_gradient(partial(_LOSS[loss], y=y), s.copy(), 1e-6)
            off_numerical = max(off_numerical, _off(by_scores(s, y), slopes))
        rows.append(
            FormulaRow(formula=f"{loss}: dL_i/ds and dL_i/dW", fast=off_fast,
                       numerical=off_numerical)
        )  # fmt: skip
        mean = mean_gradient(weights, found.features, found.labels, loss)
        fast = loss_and_gradient(weights, found.features, found.labels, loss)[1]
        rows.append(FormulaRow(formula=f"{loss}: mean over examples", fast=_off(mean, fast),
                               numerical=None))  # fmt: skip
    return tuple(rows)


def _svm_by_scores(s: Floats, y: int) -> Floats:
    return svm_example_gradient(s, y, np.ones(1))[:, 0]


def _off(found: Floats, expected: Floats) -> float:
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))
