"""The flat parameters that a run starts from, and the mask of its L2 penalty."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from distsgd.core.arrays import Floats, padded_columns

__all__ = ["decay_factors", "he_weights", "initial_weights", "pad", "unpad"]

_WEIGHTS_STREAM = 0
"""Names the stream of random bits behind the first W."""

_LAYERS_STREAM = 2
"""Names the streams behind the first weights of several layers; 1 is that of the plan."""


def initial_weights(seed: int, classes: int, features: int, scale: float, dtype: str) -> Floats:
    """W = randn(classes, features + 1) * scale with zero bias, flat and padded.

    Source: CS231n notes, "Optimization": W = np.random.randn(10, 3073) * 0.0001.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, _WEIGHTS_STREAM])))
    weights = rng.standard_normal((classes, features + 1)) * scale
    weights[:, features] = 0
    return pad(weights.astype(dtype))


def he_weights(seed: int, layers: Sequence[tuple[int, int]], scale: float, dtype: str) -> Floats:
    """Each layer randn * scale * sqrt(2 / inputs), with zero bias; flat and padded.

    With a scale of 1 and features of unit variance, the hidden units of max(0, W x) keep the
    variance of their inputs, however many there are.

    Args:
        seed: of the run.
        layers: (outputs, inputs) of each.
        scale: multiplies the standard deviations.
        dtype: "float32" or "float64".

    Source: He, Zhang, Ren and Sun 2015, eq. 10; CS231n notes, "Setting up the data".
    """
    parts = []
    for number, (outputs, inputs) in enumerate(layers):
        sequence = np.random.SeedSequence([seed, _LAYERS_STREAM, number])
        rng = np.random.Generator(np.random.PCG64(sequence))
        weights = np.zeros((outputs, inputs + 1))
        weights[:, :inputs] = rng.standard_normal((outputs, inputs))
        weights *= scale * math.sqrt(2 / inputs)
        parts.append(pad(weights.astype(dtype)))
    return np.concatenate(parts)


def decay_factors(classes: int, features: int, regularization: float, dtype: str) -> Floats:
    """Shape (parameters,): 2 lambda for weights, 0 for the bias and the padding.

    The gradient of lambda * sum of W**2 is 2 lambda W (see `losses.penalty`).
    """
    factors = np.zeros((classes, padded_columns(features)), dtype=dtype)
    factors[:, :features] = 2 * regularization
    return factors.reshape(-1)


def pad(weights: Floats) -> Floats:
    """Flat padded parameters from W of shape (classes, features + 1)."""
    classes, columns = weights.shape
    wide = np.zeros((classes, padded_columns(columns - 1)), dtype=weights.dtype)
    wide[:, :columns] = weights
    return wide.reshape(-1)


def unpad(flat: Floats, classes: int, features: int) -> Floats:
    """W of shape (classes, features + 1), C-contiguous, from flat padded parameters."""
    return np.ascontiguousarray(flat.reshape(classes, -1)[:, : features + 1])
