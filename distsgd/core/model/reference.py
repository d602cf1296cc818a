"""The formulas of the lecture in float64, written down plainly, and how far float32 may be off.

It shares no code with what trains (`slot_gradient`, `losses`, `optimizers`, `schedules`), so
that a mistake there is not made here too. Speed is no aim.

Bounds are statistical: of k roundings of relative size u (half of the distance from 1 to the next
number), a sum collects about sqrt(k) u times the root mean square of its terms, and six times
that is met by chance about never (Higham and Mary 2019, "A new approach to probabilistic rounding
error analysis", theorem 2.4, where the worst case k u is replaced by lambda sqrt(k) u).

Two layers in float64, written down plainly, and how far float32 may be off.

As `distsgd.core.model.reference`, whose bounds these are, taken through the second layer: it
shares no code with what trains.

Two layers by their definition, in float64: loss and gradient, plainly written.

h = max(0, W1 x), s = W2 (h, 1): the bias trick in both layers, so x ends in a 1. This is what the
kernel is tested against, and what to use where neither speed nor bits matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model.losses import LOSSES, penalty

__all__ = [
    "Recomputed",
    "recompute",
    "recompute_two_layer",
    "rounding",
    "two_layer_loss_and_gradient",
    "two_layer_scores",
    "updated",
    "with_bias",
]


Array = NDArray[np.float64]

LAMBDA = 6.0
BETA2 = 0.999
EPSILON = 1e-8


def rounding(dtype: str) -> float:
    """Unit roundoff u: 6.0e-8 for float32, 1.1e-16 for float64."""
    return float(np.finfo(dtype).eps) / 2


@dataclass(frozen=True, eq=False)
class Recomputed:
    """One slot's share of a gradient, and how far a good one may be from it.

    Attributes:
        losses: L_i, shape (examples,).
        loss_bound: for their sum.
        errors: dL_i/ds of the first layer's outputs s, shape (examples, outputs).
        gradient: sum of dL_i/dW, shape (classes, features + 1); of more layers, one vector.
        variance: square of the statistical bound on it, to be added over slots.
        flips: bound from hinges that may fall to either side, to be added too.
    """

    losses: Array
    loss_bound: float
    errors: Array
    gradient: Array
    variance: Array
    flips: Array


def recompute(
    weights: Array,
    pixels: Array,
    labels: NDArray[np.intp],
    mean: Array,
    scale: float,
    loss: str,
    unit: float,
) -> Recomputed:
    """Losses and gradient of some examples.

    Args:
        weights: W, shape (classes, features + 1).
        pixels: shape (examples, features), from 0 to 255.
        labels: shape (examples,).
        mean: of each pixel, shape (features,).
        scale: what centred pixels are divided by.
        loss: "softmax" or "svm".
        unit: unit roundoff of what is compared.
    """  # fmt: skip
    count, features = pixels.shape
    ones = np.ones((count, 1))
    x = np.hstack([(pixels - mean) / scale, ones])
    # The kernel works on raw pixels and on the centre apart: its terms are larger than x.
    size = np.hstack([(pixels + mean) / scale, ones])
    scores = x @ weights.T
    spread = np.sqrt((size**2) @ (weights**2).T)  # root of the sum of squares of the terms
    at_most = np.abs(weights[:, :features] @ mean) / scale
    # That of k = `features` additions; and of the two that the score is a difference of.
    doubt = LAMBDA * unit * (np.sqrt(features) * spread + 2 * (at_most + np.abs(scores)) + 1)
    losses, moved, errors, sway, flips = errors_of(scores, labels, doubt, loss, unit)
    own = LAMBDA * unit * np.sqrt(count + 8.0)
    variance = (sway**2).T @ x**2 + own**2 * ((errors**2).T @ size**2)
    return Recomputed(
        losses, float(np.sqrt((moved**2).sum()) + 16 * unit * (np.abs(losses) + 1).sum()),
        errors, errors.T @ x, variance, flips.T @ np.abs(x),
    )  # fmt: skip


def errors_of(
    scores: Array, labels: NDArray[np.intp], doubt: Array, loss: str, unit: float
) -> tuple[Array, Array, Array, Array, Array]:
    """Losses and dL_i/ds from scores, and how far they move if the scores do.

    Args:
        scores: shape (examples, classes).
        labels: shape (examples,).
        doubt: how far each score may be off.
        loss: "softmax" or "svm".
        unit: unit roundoff of what is compared.

    Returns:
        losses, shape (examples,); how far they may be off; dL_i/ds, shape (examples, classes); a
        statistical bound on it; and by how much hinges that may fall to either side change it.
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
    """W after one update by its rule, and the size of what rounding errors are relative to.

    Args:
        rule: name of the update rule.
        weights: W before.
        gradient: g, with the penalty.
        size: of the terms that g is the sum of, added without their signs.
        state: of the rule, before.
        rate: eta.
        momentum: mu.
        number: t, from 1.
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


def recompute_two_layer(
    w1: Array,
    w2: Array,
    pixels: Array,
    labels: NDArray[np.intp],
    mean: Array,
    scale: float,
    loss: str,
    unit: float,
) -> Recomputed:
    """Losses and gradient of some examples through s = W2 (max(0, W1 x), 1).

    Args:
        w1: shape (hidden, features + 1).
        w2: shape (classes, hidden + 1).
        pixels: shape (examples, features), from 0 to 255.
        labels: shape (examples,).
        mean: of each pixel, shape (features,).
        scale: what centred pixels are divided by.
        loss: "softmax" or "svm".
        unit: unit roundoff of what is compared.

    Returns:
        gradient, variance and flips as one vector each, W1 row by row and then W2; errors are
        dL_i/da of a = W1 x, shape (examples, hidden).
    """  # fmt: skip
    count, features = pixels.shape
    ones = np.ones((count, 1))
    x = np.hstack([(pixels - mean) / scale, ones])
    size = np.hstack([(pixels + mean) / scale, ones])  # of the kernel's terms; see `recompute`
    a = x @ w1.T
    centre = np.abs(w1[:, :features] @ mean) / scale
    spread = np.sqrt((size**2) @ (w1**2).T)
    doubt_a = LAMBDA * unit * (np.sqrt(features) * spread + 2 * (centre + np.abs(a)))
    h = np.hstack([np.maximum(a, 0), ones])
    doubt_h = np.hstack([doubt_a, np.zeros_like(ones)])
    s = h @ w2.T
    terms = np.sqrt(h**2 @ (w2**2).T)
    rounded = LAMBDA * unit * (np.sqrt(h.shape[1]) * terms + 2 * np.abs(s) + 1)
    doubt_s = doubt_h @ np.abs(w2).T + rounded
    losses, moved, errors, sway, flips = errors_of(s, labels, doubt_s, loss, unit)

    inner = np.abs(w2[:, :-1])
    g = errors @ w2[:, :-1]
    sway_g = np.sqrt(sway**2 @ inner**2) + LAMBDA * unit * np.sqrt(errors**2 @ inner**2) * 4
    flips_g = flips @ inner
    active = a > 0
    d, sway_d, flips_d = g * active, sway_g * active, flips_g * active
    flips_d += (np.abs(g) + sway_g + flips_g) * (np.abs(a) <= doubt_a)  # either side of the kink

    own = LAMBDA * unit * np.sqrt(count + 8.0)
    first = sway_d.T**2 @ x**2 + own**2 * (d.T**2 @ size**2)
    second = sway.T**2 @ h**2 + own**2 * (errors.T**2 @ h**2)
    # What is wrong with h is so for many examples alike (the centre is), so it adds up.
    flips_second = flips.T @ (h + doubt_h) + np.abs(errors).T @ doubt_h
    return Recomputed(
        losses, float(np.sqrt((moved**2).sum()) + 16 * unit * (np.abs(losses) + 1).sum()),
        d, _joined(d.T @ x, errors.T @ h), _joined(first, second),
        _joined(flips_d.T @ np.abs(x), flips_second),
    )  # fmt: skip


def _joined(first: Array, second: Array) -> Array:
    return np.concatenate([first.reshape(-1), second.reshape(-1)])


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
