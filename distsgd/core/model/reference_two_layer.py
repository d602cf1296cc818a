"""Two layers in float64, written down plainly, and how far float32 may be off.

As `distsgd.core.model.reference`, whose bounds these are, taken through the second layer: it
shares no code with what trains.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distsgd.core.model.reference import LAMBDA, Recomputed, errors_of

__all__ = ["recompute_two_layer"]

Array = NDArray[np.float64]


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
