"""The gradients of two layers against central differences, in float64."""

from __future__ import annotations

import math

import numpy as np

from distsgd.core.arrays import Bytes, Floats, Ints
from distsgd.core.model.features import Preprocessing
from distsgd.core.model.gradient_check import FLOOR, STENCIL, GradientCheck, summed_gradient
from distsgd.core.model.losses import LOSSES
from distsgd.core.model.models import TwoLayer
from distsgd.core.model.two_layer_part import with_bias

__all__ = ["analytic_two_layer_gradient", "check_two_layer_gradient"]


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
