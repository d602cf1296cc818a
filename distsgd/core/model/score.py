"""The linear score function s = W x, in pieces of a fixed size."""

from __future__ import annotations

import numpy as np

from distsgd.core.arrays import Floats, padded

__all__ = ["block_columns", "block_rows", "score"]

_SMALL_PRODUCT = 1_000_000
"""Multiplications up to which OpenBLAS uses its small-matrix kernels, which are twice as fast
for these thin shapes: 32 x 3088 by 3088 x 10 takes 21 us, 64 rows in one call 96 us."""


def block_rows(classes: int, columns: int) -> int:
    """Rows of a block of `score`: a power of two from 8 to 64 that stays a small product."""
    rows = 64
    while rows > 8 and rows * classes * columns > _SMALL_PRODUCT:
        rows //= 2
    return rows


def block_columns(rows: int, classes: int, columns: int) -> int:
    """Columns of a block of a gradient: a multiple of 16, in at most 64 nearly equal blocks."""
    small = max(1, _SMALL_PRODUCT // (rows * classes))
    blocks = min(64, -(-columns // small))
    while blocks < 64 and padded(-(-columns // blocks)) > small:
        blocks += 1
    return padded(-(-columns // blocks))


def score(weights: Floats, features: Floats, out: Floats) -> Floats:
    """s_i = W x_i for every row x_i of the features.

    The product is cut into blocks of rows whose size depends on the shape of W alone, so the
    scores of a slot have the same bits wherever and with whatever else they are computed.

    Args:
        weights: W, shape (classes, columns).
        features: shape (rows, columns), the bias column being 1.
        out: shape (rows, classes), overwritten and returned.

    Source: CS231n notes, "Linear classification": f(x, W) = W x with the bias trick.
    """
    step = block_rows(*weights.shape)
    for low in range(0, len(features), step):
        block = slice(low, low + step)
        np.matmul(features[block], weights.T, out=out[block])
    return out
