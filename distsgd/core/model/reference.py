"""The formulas in float64, written down plainly: what training is tested and verified against.

`recompute` and `updated` share no code with training (`slot_gradient`, `losses`, `optimizers`,
`schedules`), so that a mistake there is not repeated here. They also bound how far a correct
float32 result can be off. The bounds are statistical: of k roundings of relative size u (half the
distance from 1 to the next number), a sum collects about sqrt(k) u times the root mean square of
its terms, and six times that is practically never reached (Higham and Mary 2019, "A new approach
to probabilistic rounding error analysis", theorem 2.4, where the worst case k u is replaced by
lambda sqrt(k) u).

A network is a list of its layers' weights W, each of shape (outputs, inputs + 1): the input of a
layer ends in a 1, so that the last column of W is the bias ("bias trick"). Between two layers
stands h = max(0, a). A linear classifier is a network of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model.losses import LOSSES, penalty

__all__ = [
    "LAMBDA",
    "Recomputed",
    "forward",
    "loss_and_gradient",
    "recompute",
    "rounding",
    "updated",
    "with_bias",
]

Array = NDArray[np.float64]

LAMBDA = 6.0
"""Lambda of the statistical bounds."""

BETA2 = 0.999
EPSILON = 1e-8


def with_bias(values: Floats) -> Floats:
    """The rows with a 1 appended, float64: the input of a layer."""
    return np.hstack([np.asarray(values, dtype=np.float64), np.ones((len(values), 1))])


def forward(layers: Sequence[Floats], features: Floats) -> tuple[list[Floats], list[Floats]]:
    """s = W_n (max(0, ... max(0, W_1 x) ...), 1) for every row x of the features.

    Args:
        layers: weights of each layer, shape (outputs, inputs + 1).
        features: shape (examples, features + 1), the last column 1; see `with_bias`.

    Returns:
        the input of each layer, shape (examples, inputs + 1); and its outputs a = W h before
        max(0, a), shape (examples, outputs), of which the last are the scores.
    """
    inputs: list[Floats] = [features]
    outputs: list[Floats] = [features @ layers[0].T]
    for weights in layers[1:]:
        inputs.append(with_bias(np.maximum(0, outputs[-1])))
        outputs.append(inputs[-1] @ weights.T)
    return inputs, outputs


def loss_and_gradient(
    layers: Sequence[Floats],
    features: Floats,
    labels: Ints,
    loss: str = "softmax",
    regularization: float = 0.0,
) -> tuple[float, list[Floats]]:
    """Mean L_i + lambda sum W**2 without the biases, and its gradient for each layer.

    With g = dL_i/ds of a layer's outputs s = W h, by the chain rule: dL_i/dW = g h',
    dL_i/dh = W' g, and dL_i/da = dL_i/dh where a > 0 and 0 elsewhere for h = max(0, a), also at
    a = 0 (a subgradient of the kink).

    Args:
        layers: weights of each layer, shape (outputs, inputs + 1).
        features: shape (examples, features + 1), the last column 1; see `with_bias`.
        labels: shape (examples,), integers below classes.
        loss: "softmax" or "svm".
        regularization: lambda.

    Returns:
        the loss; and the gradients, of the shapes of ``layers``, float64.

    Source: CS231n notes, "Backpropagation, Intuitions".
    """
    inputs, outputs = forward(layers, features)
    by_output = np.empty_like(outputs[-1])
    losses = LOSSES[loss](outputs[-1], labels, by_output)
    gradients: list[Floats] = []
    for number in reversed(range(len(layers))):
        weights = layers[number]
        gradient = by_output.T @ inputs[number] / len(labels)
        gradient[:, :-1] += 2 * regularization * weights[:, :-1]
        gradients.insert(0, gradient)
        if number:
            by_output = np.where(outputs[number - 1] > 0, by_output @ weights[:, :-1], 0)
    extra = sum(penalty(weights, weights.shape[1] - 1, regularization) for weights in layers)
    return float(losses.mean() + extra), gradients


def rounding(dtype: str) -> float:
    """Unit roundoff u: 6.0e-8 for float32, 1.1e-16 for float64."""
    return float(np.finfo(dtype).eps) / 2


@dataclass(frozen=True, eq=False)
class Recomputed:
    """A slot's share of a gradient, and how far a correct one can be from it.

    Attributes:
        losses: L_i, shape (examples,).
        loss_bound: for the sum of the losses.
        errors: dL_i/ds of the first layer's outputs s, shape (examples, outputs).
        gradient: sum of dL_i/dW, in the shape of a checkpoint: (classes, features + 1) for one
            layer, else one vector of all layers.
        variance: square of the statistical bound on the gradient, to be added over slots.
        flips: bound on the effect of kinks that rounding may cross, to be added over slots.
    """

    losses: Array
    loss_bound: float
    errors: Array
    gradient: Array
    variance: Array
    flips: Array


@dataclass(frozen=True, eq=False)
class _Input:
    """The input h of a layer.

    Attributes:
        values: h with the bias, shape (examples, inputs + 1).
        sizes: of the terms that a kernel adds up for a value, of the same shape.
    """

    values: Array
    sizes: Array


@dataclass(frozen=True, eq=False)
class _Hidden(_Input):
    """h = max(0, a), computed by the layer below.

    Attributes:
        doubt: how far h can be off, of the shape of ``values``.
        active: where a > 0, shape (examples, inputs).
        near_kink: where rounding decides whether a > 0, of the same shape.
    """

    doubt: Array
    active: NDArray[np.bool_]
    near_kink: NDArray[np.bool_]


def recompute(
    layers: Sequence[Array],
    pixels: Array,
    labels: NDArray[np.intp],
    mean: Array,
    scale: float,
    loss: str,
    unit: float,
    factors: Array | None = None,
) -> Recomputed:
    """Losses and gradient of some examples.

    Args:
        layers: weights of each layer, shape (outputs, inputs + 1).
        pixels: shape (examples, features), from 0 to 255.
        labels: shape (examples,).
        mean: of each pixel, shape (features,).
        scale: what centred pixels are divided by.
        loss: "softmax" or "svm".
        unit: unit roundoff of the result to be compared.
        factors: weights of the examples, shape (examples,); None if all count alike.
    """
    count, features = pixels.shape
    ones = np.ones((count, 1))
    # A kernel multiplies raw pixels and the centre separately: its terms are larger than x.
    own = _Input(np.hstack([(pixels - mean) / scale, ones]),
                 np.hstack([(pixels + mean) / scale, ones]))  # fmt: skip
    centre = np.abs(layers[0][:, :features] @ mean) / scale
    inputs: list[_Input] = []
    for number, weights in enumerate(layers, 1):
        inputs.append(own)
        outputs = own.values @ weights.T
        # The root of the sum of squares of the terms, of which there are about k = inputs.
        spread = np.sqrt((own.sizes**2) @ (weights**2).T)
        terms = np.sqrt(weights.shape[1] - 1) * spread + 2 * (centre + np.abs(outputs))
        doubt = LAMBDA * unit * (terms + (number == len(layers)))
        if isinstance(own, _Hidden):
            doubt = own.doubt @ np.abs(weights).T + doubt
        hidden = np.hstack([np.maximum(outputs, 0), ones])
        own = _Hidden(hidden, hidden, np.hstack([doubt, np.zeros_like(ones)]),
                      outputs > 0, np.abs(outputs) <= doubt)  # fmt: skip
        centre = np.zeros(1)
    losses, moved, errors, sway, flips = _errors_of(outputs, labels, doubt, loss, unit)
    if factors is not None:
        losses, moved = losses * factors, moved * factors
        errors, sway, flips = (part * factors[:, None] for part in (errors, sway, flips))
    loss_bound = float(np.sqrt((moved**2).sum()) + 16 * unit * (np.abs(losses) + 1).sum())
    parts: list[tuple[Array, Array, Array]] = []
    for own, weights in zip(reversed(inputs), reversed(layers), strict=True):
        parts.insert(0, _weight_gradient(own, errors, sway, flips, LAMBDA * unit))
        if isinstance(own, _Hidden):
            errors, sway, flips = _input_gradient(own, weights, errors, sway, flips, LAMBDA * unit)
    whole = (
        values[0] if len(values) == 1 else np.concatenate([part.reshape(-1) for part in values])
        for values in zip(*parts, strict=True)
    )
    return Recomputed(losses, loss_bound, errors, *whole)


def _weight_gradient(
    own: _Input, errors: Array, sway: Array, flips: Array, unit: float
) -> tuple[Array, Array, Array]:
    """dL/dW of a layer, its variance, and its flips; see `Recomputed`."""
    rounded = unit * np.sqrt(len(errors) + 8.0)
    variance = (sway**2).T @ own.values**2 + rounded**2 * ((errors**2).T @ own.sizes**2)
    if not isinstance(own, _Hidden):
        return errors.T @ own.values, variance, flips.T @ np.abs(own.values)
    # Errors of h are alike for many examples (that of the centre is), so they add up.
    by_doubt = np.abs(errors).T @ own.doubt
    return errors.T @ own.values, variance, flips.T @ (own.values + own.doubt) + by_doubt


def _input_gradient(
    own: _Hidden, weights: Array, errors: Array, sway: Array, flips: Array, unit: float
) -> tuple[Array, Array, Array]:
    """dL_i/da of the layer below, with h = max(0, a); its statistical bound, and its flips."""
    inner = np.abs(weights[:, :-1])
    by_input = errors @ weights[:, :-1]
    sway = np.sqrt(sway**2 @ inner**2) + unit * np.sqrt(errors**2 @ inner**2) * 4
    flips = flips @ inner
    crossing = (np.abs(by_input) + sway + flips) * own.near_kink
    return by_input * own.active, sway * own.active, flips * own.active + crossing


def _errors_of(
    scores: Array, labels: NDArray[np.intp], doubt: Array, loss: str, unit: float
) -> tuple[Array, Array, Array, Array, Array]:
    """Losses and dL_i/ds from scores, and how far they can be off if the scores are.

    Args:
        scores: shape (examples, classes).
        labels: shape (examples,).
        doubt: how far each score may be off.
        loss: "softmax" or "svm".
        unit: unit roundoff of the result to be compared.

    Returns:
        losses, shape (examples,); how far they may be off; dL_i/ds, shape (examples, classes); a
        statistical bound on it; and a bound on the effect of hinges that rounding may flip.
    """
    rows, most = np.arange(len(labels)), doubt.max(axis=1)
    errors, losses, hinges = _softmax(scores, labels) if loss == "softmax" else _svm(scores, labels)
    flips = np.zeros_like(errors)
    if loss == "svm":
        flips[(np.abs(hinges) <= 2 * most[:, None])] = 1
        flips[rows, labels] = 0
        flips[rows, labels] = flips.sum(axis=1)
        moved = 2 * most * scores.shape[1]
    else:
        moved = 2 * most
    # |dp| <= max |ds| / 2 (softmax); a hinge does not move but for flips.
    sway = (most[:, None] if loss == "softmax" else 0 * errors) + 8 * unit * np.abs(errors)
    return losses, moved, errors, sway, flips


def _softmax(scores: Array, labels: NDArray[np.intp]) -> tuple[Array, Array, Array]:
    """L_i = -log p_y with p = exp(s) / sum exp(s); dL_i/ds = p - 1(j = y)."""
    rows = np.arange(len(labels))
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    p = powers / powers.sum(axis=1, keepdims=True)
    losses = -(scores - scores.max(axis=1, keepdims=True))[rows, labels]
    losses += np.log(powers.sum(axis=1))
    p[rows, labels] -= 1
    return p, losses, np.empty_like(p)


def _svm(scores: Array, labels: NDArray[np.intp]) -> tuple[Array, Array, Array]:
    """L_i = sum over j != y of max(0, s_j - s_y + 1); dL_i/ds counts the margins above 0."""
    rows = np.arange(len(labels))
    margins = scores - scores[rows, labels][:, None] + 1
    hinges = margins.copy()
    margins[rows, labels] = 0
    errors = (margins > 0).astype(np.float64)
    errors[rows, labels] = -errors.sum(axis=1)
    return errors, np.maximum(margins, 0).sum(axis=1), hinges


def updated(
    rule: str,
    weights: Array,
    gradient: Array,
    size: Array,
    state: dict[str, Array],
    rate: float,
    momentum: float,
    number: int,
) -> tuple[Array, Array]:
    """W after one update, and the magnitude that its rounding errors are relative to.

    Args:
        rule: name of the update rule.
        weights: W before.
        gradient: g, with the penalty.
        size: sum of the magnitudes of the terms of g.
        state: of the rule, before.
        rate: learning rate eta.
        momentum: mu.
        number: t of the update, from 1.
    """  # fmt: skip
    if rule == "sgd":
        return weights - rate * gradient, rate * size
    if rule == "adagrad":
        root = np.sqrt(state["squares"] + gradient**2) + EPSILON
        return weights - rate * gradient / root, rate * size / root
    if rule == "adam":
        mean = momentum * state["mean"] + (1 - momentum) * gradient
        large = momentum * np.abs(state["mean"]) + (1 - momentum) * size
        squares = BETA2 * state["squares"] + (1 - BETA2) * gradient**2
        root = np.sqrt(squares / (1 - BETA2**number)) + EPSILON
        grown = rate / (1 - momentum**number)
        return weights - grown * mean / root, grown * large / root
    velocity = momentum * state["velocity"] + gradient
    large = momentum * np.abs(state["velocity"]) + size
    if rule == "momentum":
        return weights - rate * velocity, rate * large
    step = gradient + momentum * velocity  # nesterov
    return weights - rate * step, rate * (size + momentum * large)
