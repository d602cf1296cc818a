"""Analytic gradients against central differences, in float64.

The gradients of two layers against central differences, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distsgd.core.arrays import Bytes, Floats, Ints, as_matrix
from distsgd.core.model.architecture import Kernel, decay_factors, pad
from distsgd.core.model.features import Preprocessing
from distsgd.core.model.losses import LOSSES
from distsgd.core.model.models import TwoLayer
from distsgd.core.model.reference import with_bias
from distsgd.core.model.slot_gradient import SlotKernel
from distsgd.core.reduction_tree import root, sum_node

__all__ = ["GradientCheck", "analytic_gradient", "check_gradient", "check_two_layer_gradient"]


FLOOR = 1e-3
"""Errors of entries below FLOOR times the largest are measured against that instead: relative
to themselves, entries near 0 would only show the rounding of the differences."""

STENCIL = ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12))
"""f'(x) = (8 f(x+h) - 8 f(x-h) - f(x+2h) + f(x-2h)) / 12h + O(h**4) (Fornberg 1988)."""


@dataclass(frozen=True)
class GradientCheck:
    """The outcome of one check.

    Attributes:
        largest_relative_error: over the parameters that were compared.
        compared: parameters that were compared.
        skipped: parameters left out because a kink of the SVM loss lies within 2h of them.
    """

    largest_relative_error: float
    compared: int
    skipped: int


def analytic_gradient(
    weights: Floats,
    loss: str,
    preprocessing: Preprocessing,
    pixels: Bytes,
    labels: Ints,
    regularization: float = 0.0,
    slot_size: int = 64,
) -> Floats:
    """The gradient of mean L_i + lambda sum W**2, made as in training: slots, then the tree.

    Args:
        weights: W, shape (classes, features + 1), float64.
        pixels: shape (examples, features), uint8.

    Returns:
        shape (classes, features + 1).
    """
    classes, columns = weights.shape
    flat = pad(weights)
    kernel = SlotKernel(loss, classes, preprocessing, slot_size, "float64")
    total = summed_gradient(kernel, flat, pixels, labels, slot_size) / len(labels)
    total += decay_factors(classes, columns - 1, regularization, "float64") * flat
    return as_matrix(total, classes)[:, :columns]


def summed_gradient(
    kernel: Kernel, flat: Floats, pixels: Bytes, labels: Ints, slot_size: int
) -> Floats:
    """The sum of dL_i/dw over all examples, made as in training: slots, then the tree.

    Args:
        kernel: of any model, in float64.
        flat: parameters, shape (parameters,).
        pixels: shape (examples, features), uint8.

    Returns:
        shape (parameters,).
    """
    slots = -(-len(labels) // slot_size)
    gradients = np.empty((slots, flat.size))
    for slot in range(slots):
        part = slice(slot * slot_size, (slot + 1) * slot_size)
        kernel.gradient(flat, pixels[part], labels[part], gradients[slot])
    return sum_node(root(slots), gradients, 0, slots)


def check_gradient(
    weights: Floats,
    loss: str,
    preprocessing: Preprocessing,
    pixels: Bytes,
    labels: Ints,
    *,
    regularization: float,
    parameters: Ints,
    h: float,
) -> GradientCheck:
    """Compare the analytic gradient with fourth-order central differences.

    The SVM loss has kinks, where it has no gradient. A parameter is skipped when the set of
    margins above 0 is not the same at w - 2h and at w + 2h: a kink lies between.

    Args:
        weights: W, shape (classes, features + 1), float64.
        parameters: flat positions in W of the entries to check.
        h: step of the differences.
    """
    analytic = analytic_gradient(weights, loss, preprocessing, pixels, labels, regularization)
    features = preprocessing.buffer(len(labels), "float64")
    preprocessing.fill(pixels, features)
    scores = features[:, : weights.shape[1]] @ weights.T
    floor = FLOOR * float(np.abs(analytic).max())
    worst, compared, skipped = 0.0, 0, 0
    for parameter in parameters:
        row, column = divmod(int(parameter), weights.shape[1])
        along = features[:, column]
        if loss == "svm" and _crosses_kink(scores, labels, row, 2 * h * along):
            skipped += 1
            continue
        numeric = _difference(loss, scores, labels, row, along, h)
        if column < weights.shape[1] - 1:
            numeric += 2 * regularization * weights[row, column]
        error = abs(numeric - analytic[row, column])
        scale = max(abs(numeric), abs(analytic[row, column]), floor)
        relative = float(error / scale) if scale else float(error)
        worst = max(worst, relative if math.isfinite(relative) else math.inf)
        compared += 1
    return GradientCheck(worst, compared, skipped)


def _moved(scores: Floats, row: int, by: Floats) -> Floats:
    moved = scores.copy()
    moved[:, row] += by
    return moved


def _difference(
    loss: str, scores: Floats, labels: Ints, row: int, along: Floats, h: float
) -> float:
    """dL/dW[row, column] of the mean data loss, from four evaluations of the loss."""
    scratch = np.empty_like(scores)
    total = 0.0
    for steps, factor in STENCIL:
        losses = LOSSES[loss](_moved(scores, row, steps * h * along), labels, scratch)
        total += factor * float(losses.sum())
    return total / h / len(labels)


def _crosses_kink(scores: Floats, labels: Ints, row: int, by: Floats) -> bool:
    def active(moved: Floats) -> Floats:
        out = np.empty_like(moved)
        LOSSES["svm"](moved, labels, out)
        return out

    low, high = active(_moved(scores, row, -by)), active(_moved(scores, row, by))
    return not np.array_equal(low, high)


def analytic_two_layer_gradient(
    model: TwoLayer,
    weights: Floats,
    loss: str,
    preprocessing: Preprocessing,
    pixels: Bytes,
    labels: Ints,
    regularization: float = 0.0,
    slot_size: int = 64,
) -> Floats:
    """The gradient of mean L_i + lambda sum W**2, made as in training: slots, then the tree.

    Args:
        model: which network.
        weights: W1 and then W2 as they are kept (`Architecture.kept_shape`), float64.
        pixels: shape (examples, features), uint8.

    Returns:
        of the shape of ``weights``.
    """
    flat = model.pad(weights)
    kernel = model.kernel(loss, preprocessing, slot_size, "float64")
    total = summed_gradient(kernel, flat, pixels, labels, slot_size) / len(labels)
    total += model.decay(regularization, "float64") * flat
    return model.unpad(total)


def check_two_layer_gradient(
    model: TwoLayer,
    weights: Floats,
    loss: str,
    preprocessing: Preprocessing,
    pixels: Bytes,
    labels: Ints,
    *,
    regularization: float,
    parameters: Ints,
    h: float,
) -> GradientCheck:
    """Compare the analytic gradient with fourth-order central differences.

    There are kinks where a hidden unit begins to be above 0, and those of the SVM loss. A
    parameter is skipped when a kink lies between w - 2h and w + 2h: when the set of units above
    0, or of margins above 0, is not the same at both.

    Args:
        model: which network.
        weights: W1 and then W2 as they are kept (`Architecture.kept_shape`), float64.
        parameters: positions in ``weights`` of the entries to check.
        h: step of the differences.
    """
    analytic = analytic_two_layer_gradient(
        model, weights, loss, preprocessing, pixels, labels, regularization
    )
    features = preprocessing.buffer(len(labels), "float64")
    preprocessing.fill(pixels, features)
    lines = _Lines(model, weights, features[:, : model.features + 1])
    floor = FLOOR * float(np.abs(analytic).max())
    worst, compared, skipped = 0.0, 0, 0
    for parameter in map(int, parameters):
        ends = [lines.scores(parameter, 2 * h * side) for side in (-1, 1)]
        if lines.crosses_zero(parameter, 2 * h) or (loss == "svm" and _other_margins(ends, labels)):
            skipped += 1
            continue
        numeric = sum(
            factor * float(_losses(loss, lines.scores(parameter, steps * h), labels)[0].sum())
            for steps, factor in STENCIL
        ) / (h * len(labels))
        if not lines.is_bias(parameter):
            numeric += 2 * regularization * weights[parameter]
        error = abs(numeric - analytic[parameter])
        scale = max(abs(numeric), abs(analytic[parameter]), floor)
        relative = float(error / scale) if scale else float(error)
        worst = max(worst, relative if math.isfinite(relative) else math.inf)
        compared += 1
    return GradientCheck(worst, compared, skipped)


class _Lines:
    """The scores as a function of one parameter, when all others stay as they are."""

    def __init__(self, model: TwoLayer, weights: Floats, features: Floats) -> None:
        self._features = features
        first, second = (layer.kept for layer in model.layers)
        self._cut = first[0] * first[1]
        self._first = weights[: self._cut].reshape(first)
        self._second = weights[self._cut :].reshape(second)
        self._before = features @ self._first.T
        self._hidden = with_bias(np.maximum(0, self._before))
        self._scores = self._hidden @ self._second.T

    def _place(self, parameter: int) -> tuple[Floats, int, int]:
        """The layer of a parameter, its row and its column."""
        layer, at = self._first, parameter
        if parameter >= self._cut:
            layer, at = self._second, parameter - self._cut
        return (layer, *divmod(at, layer.shape[1]))

    def is_bias(self, parameter: int) -> bool:
        """Whether it is the bias of its row."""
        layer, _, column = self._place(parameter)
        return bool(column == layer.shape[1] - 1)

    def crosses_zero(self, parameter: int, by: float) -> bool:
        """Whether a hidden unit is above 0 at one of the parameter +- by, and not at the other."""
        layer, row, column = self._place(parameter)
        if layer is self._second:
            return False
        along = by * self._features[:, column]
        before = self._before[:, row]
        return not np.array_equal(before - along > 0, before + along > 0)

    def scores(self, parameter: int, by: float) -> Floats:
        """The scores with so much added to a parameter, shape (examples, classes)."""
        layer, row, column = self._place(parameter)
        scores = self._scores.copy()
        if layer is self._second:
            scores[:, row] += by * self._hidden[:, column]
        else:
            moved = np.maximum(0, self._before[:, row] + by * self._features[:, column])
            scores += np.outer(moved - self._hidden[:, row], self._second[:, row])
        return scores


def _losses(loss: str, scores: Floats, labels: Ints) -> tuple[Floats, Floats]:
    """L_i, and dL_i/ds."""
    gradient = np.empty_like(scores)
    return LOSSES[loss](scores, labels, gradient), gradient


def _other_margins(scores: list[Floats], labels: Ints) -> bool:
    """Whether other margins of the SVM loss are above 0 at the one scores than at the other."""
    low, high = (_losses("svm", one, labels)[1] for one in scores)
    return not np.array_equal(low, high)
