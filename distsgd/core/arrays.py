"""Names for the array types of the core, and the layout of W."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Bytes",
    "Floats",
    "Ints",
    "Values",
    "as_matrix",
    "bias_column",
    "finite",
    "padded",
    "padded_columns",
]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Bytes = NDArray[np.uint8]
Values = NDArray[Any]
"""Rows of a dataset: uint8 pixels, or float32 features."""

_ALIGN = 16
"""Floats in a cache line: rows of this multiple are about a quarter faster to multiply."""


def padded(columns: int) -> int:
    """The next multiple of 16."""
    return -(-columns // _ALIGN) * _ALIGN


def padded_columns(features: int) -> int:
    """Columns of W as it is stored: features + 1 (the bias), rounded up to a multiple of 16.

    The columns after the bias are zero in the features, hence zero in every gradient, and
    stay zero in W.
    """
    return padded(features + 1)


def bias_column(features: int) -> int:
    """The column of W that holds the bias ("bias trick": its feature is always 1)."""
    return features


def as_matrix(flat: Floats, classes: int) -> Floats:
    """View flat parameters, shape (classes * columns,), as W, shape (classes, columns)."""
    return flat.reshape(classes, -1)


def finite(vector: Floats) -> bool:
    """Whether all is finite, and not so large that its squares are not."""
    return math.isfinite(float(np.dot(vector, vector)))
