"""The flat parameters that a run starts from, and the mask of its L2 penalty."""

from __future__ import annotations

import numpy as np

from distsgd.core.arrays import Floats, padded_columns

__all__ = ["decay_factors", "initial_weights", "pad", "unpad"]

_WEIGHTS_STREAM = 0
"""Names the stream of random bits behind the first W."""


def initial_weights(seed: int, classes: int, features: int, scale: float, dtype: str) -> Floats:
    """W = randn(classes, features + 1) * scale with zero bias, flat and padded.

    Source: CS231n notes, "Optimization": W = np.random.randn(10, 3073) * 0.0001.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, _WEIGHTS_STREAM])))
    weights = rng.standard_normal((classes, features + 1)) * scale
    weights[:, features] = 0
    return pad(weights.astype(dtype))


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
