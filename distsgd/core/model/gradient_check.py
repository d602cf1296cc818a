"""Analytic gradients against central differences, in float64, for every model.

The losses have kinks, where they have no gradient: where a hidden unit max(0, a) starts to be
active, and the hinges of the SVM loss. A parameter w is skipped if a kink lies between w - 2h and
w + 2h, that is, if the active units or the positive margins are not the same at both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from distsgd.core.arrays import Bytes, Floats, Ints
from distsgd.core.model.architecture import Architecture
from distsgd.core.model.features import Preprocessing
from distsgd.core.model.losses import LOSSES
from distsgd.core.model.reference import forward, with_bias
from distsgd.core.model.slot_gradient import KernelSettings
from distsgd.core.reduction_tree import root, sum_node

__all__ = ["CASES", "GradientCheck", "analytic_gradient", "check_gradient", "random_weights"]

CASES = ("small", "random", "extreme")
"""Names of the weights that are checked; see `random_weights`."""

_ONE_LAYER = {"small": (1e-4, 1e-3), "random": (1e-2, 1e-3), "extreme": (30.0, 5e-3)}
"""Name -> standard deviation of W, and step h of the differences. The extreme W gives scores of
several thousand, where rounding needs a longer step."""

_SEVERAL_LAYERS = {"small": (0.1, 1e-4), "random": (1.0, 3e-4), "extreme": (100.0, 1e-3)}
"""Name -> multiple of the standard deviation of He et al. 2015, and step h."""

_FLOOR = 1e-3
"""Errors of entries below _FLOOR times the largest are relative to that instead: relative to
themselves, entries near 0 would only show the rounding of the differences."""

_STENCIL = ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12))
"""f'(x) = (8 f(x+h) - 8 f(x-h) - f(x+2h) + f(x-2h)) / 12h + O(h**4) (Fornberg 1988)."""


@dataclass(frozen=True)
class GradientCheck:
    """The outcome of one check.

    Attributes:
        largest_relative_error: over the parameters that were compared.
        compared: parameters that were compared.
        skipped: parameters that were skipped because a kink lies within 2h of them.
    """

    largest_relative_error: float
    compared: int
    skipped: int


def random_weights(
    model: Architecture, case: str, rng: np.random.Generator
) -> tuple[Floats, float]:
    """Random parameters to check a gradient at, biases included, and the step h for them.

    Args:
        model: of the parameters.
        case: one of `CASES`.
        rng: of the parameters.

    Returns:
        parameters in the shape of a checkpoint, float64; and h.
    """
    if len(model.layers) == 1:
        scale, h = _ONE_LAYER[case]
        return rng.standard_normal(model.kept_shape) * scale, h
    scale, h = _SEVERAL_LAYERS[case]
    return np.concatenate([
        rng.standard_normal(outputs * columns) * scale * math.sqrt(2 / columns)
        for outputs, columns in (layer.kept for layer in model.layers)
    ]), h  # fmt: skip


def analytic_gradient(
    model: Architecture,
    weights: Floats,
    loss: str,
    preprocessing: Preprocessing,
    pixels: Bytes,
    labels: Ints,
    regularization: float = 0.0,
    slot_size: int = 64,
) -> Floats:
    """The gradient of mean L_i + lambda sum W**2, computed as in training: slots, then the tree.

    Args:
        model: of the parameters.
        weights: in the shape of a checkpoint (`Architecture.kept_shape`), float64.
        loss: "softmax" or "svm".
        preprocessing: from pixels to features.
        pixels: shape (examples, features), uint8.
        labels: shape (examples,).
        regularization: lambda.
        slot_size: examples of a slot.

    Returns:
        of the shape of ``weights``.
    """
    flat = model.pad(weights)
    kernel = model.kernel(KernelSettings(loss, preprocessing, slot_size, "float64"))
    slots = -(-len(labels) // slot_size)
    gradients = np.empty((slots, flat.size))
    for slot in range(slots):
        part = slice(slot * slot_size, (slot + 1) * slot_size)
        kernel.gradient(flat, pixels[part], labels[part], gradients[slot])
    total = sum_node(root(slots), gradients, 0, slots) / len(labels)
    total += model.decay(regularization, "float64") * flat
    return model.unpad(total)


def check_gradient(
    model: Architecture,
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

    Args:
        model: of the parameters.
        weights: in the shape of a checkpoint (`Architecture.kept_shape`), float64.
        loss: "softmax" or "svm".
        preprocessing: from pixels to features.
        pixels: shape (examples, features), uint8.
        labels: shape (examples,).
        regularization: lambda.
        parameters: flat positions in ``weights`` of the entries to check.
        h: step of the differences.
    """
    analytic = analytic_gradient(
        model, weights, loss, preprocessing, pixels, labels, regularization
    ).reshape(-1)
    features = preprocessing.buffer(len(labels), "float64")
    preprocessing.fill(pixels, features)
    lines = _Lines(model.split_kept(weights), features[:, : model.features + 1])
    floor = _FLOOR * float(np.abs(analytic).max())
    worst, compared, skipped = 0.0, 0, 0
    for parameter in map(int, parameters):
        ends = (lines.scores(parameter, 2 * h * side) for side in (-1, 1))
        if lines.crosses_zero(parameter, 2 * h) or (loss == "svm" and _margins_flip(ends, labels)):
            skipped += 1
            continue
        numeric = sum(
            factor * float(_losses(loss, lines.scores(parameter, steps * h), labels)[0].sum())
            for steps, factor in _STENCIL
        )
        numeric = numeric / h / len(labels)
        if not lines.is_bias(parameter):
            numeric += 2 * regularization * weights.reshape(-1)[parameter]
        error = abs(numeric - analytic[parameter])
        scale = max(abs(numeric), abs(analytic[parameter]), floor)
        relative = float(error / scale) if scale else float(error)
        worst = max(worst, relative if math.isfinite(relative) else math.inf)
        compared += 1
    return GradientCheck(worst, compared, skipped)


class _Lines:
    """The scores as a function of one parameter while all others stay fixed.

    Args:
        layers: weights of each layer, shape (outputs, inputs + 1).
        features: shape (examples, features + 1).
    """

    def __init__(self, layers: list[Floats], features: Floats) -> None:
        self._layers = layers
        self._inputs, self._outputs = forward(layers, features)

    def _place(self, parameter: int) -> tuple[int, int, int]:
        """The layer of a parameter, its row and its column."""
        layer = 0
        while parameter >= self._layers[layer].size:
            parameter -= self._layers[layer].size
            layer += 1
        return (layer, *divmod(parameter, self._layers[layer].shape[1]))

    def is_bias(self, parameter: int) -> bool:
        """Whether it is the bias of its row."""
        layer, _, column = self._place(parameter)
        return column == int(self._layers[layer].shape[1]) - 1

    def crosses_zero(self, parameter: int, by: float) -> bool:
        """Whether a hidden unit is active at only one of the parameter +- by."""
        low, high = (self._moved(parameter, by * side)[:-1] for side in (-1, 1))
        return any(not np.array_equal(a > 0, b > 0) for a, b in zip(low, high, strict=True))

    def scores(self, parameter: int, by: float) -> Floats:
        """The scores with ``by`` added to a parameter, shape (examples, classes)."""
        return self._moved(parameter, by)[-1]

    def _moved(self, parameter: int, by: float) -> list[Floats]:
        """The outputs that change with a parameter, from its layer up to the scores.

        Of a hidden layer that is one unit, shape (examples,).
        """
        layer, row, column = self._place(parameter)
        before = self._outputs[layer]
        unit = before[:, row] + by * self._inputs[layer][:, column]
        if layer == len(self._layers) - 1:
            scores = before.copy()
            scores[:, row] = unit
            return [scores]
        change = np.maximum(0, unit) - np.maximum(0, before[:, row])
        above = self._outputs[layer + 1] + np.outer(change, self._layers[layer + 1][:, row])
        moved = [unit, above]
        for weights in self._layers[layer + 2 :]:
            moved.append(with_bias(np.maximum(0, moved[-1])) @ weights.T)
        return moved


def _losses(loss: str, scores: Floats, labels: Ints) -> tuple[Floats, Floats]:
    """L_i, and dL_i/ds."""
    gradient = np.empty_like(scores)
    return LOSSES[loss](scores, labels, gradient), gradient


def _margins_flip(ends: Iterable[Floats], labels: Ints) -> bool:
    """Whether a margin of the SVM loss is above 0 at only one of two scores."""
    low, high = (_losses("svm", scores, labels)[1] for scores in ends)
    return not np.array_equal(low, high)
