"""Standardise columns: the mean and deviation of weighted rows, updated as rows come."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats

__all__ = ["Standardiser"]

# `distsgd.data.standardising` clips far values and knows no weights. An estimator's `coef_` must be
# linear in rows as they are given, a weight of 2 must count as two rows, and `partial_fit` merges.

_ROWS = 2048
"""Rows at once: they stay in the cache of the processor from the first pass to the second."""

_CONSTANT = 1e-13
"""A column whose deviation is below this share of its mean is constant up to rounding."""


@dataclass(frozen=True, eq=False)
class Standardiser:
    """Subtract each column's mean, divide by its standard deviation.

    Attributes:
        total: sum of the weights of the rows it was made from.
        mean: shape (features,), float64.
        variance: likewise.
    """

    total: float
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Floats, weights: Floats | None) -> Standardiser:
        """The standardiser of some rows.

        A row of weight 2 counts as two rows; a row of weight 0 does not count.

        Args:
            rows: shape (rows, features), finite.
            weights: shape (rows,), not negative and not all 0; None if all are 1.

        Raises:
            ValueError: a column has numbers whose squares are not finite.
        """
        total = float(len(rows)) if weights is None else float(weights.sum())
        mean, variance = (np.zeros(rows.shape[1]) for _ in range(2))
        for low in range(0, len(rows), _ROWS):
            part = rows[low : low + _ROWS]
            share = np.ones(len(part)) if weights is None else weights[low : low + _ROWS]
            mean += share @ part.astype(np.float64, copy=False)
        mean /= total
        with np.errstate(over="ignore", invalid="ignore"):
            for low in range(0, len(rows), _ROWS):
                part = rows[low : low + _ROWS] - mean
                share = np.ones(len(part)) if weights is None else weights[low : low + _ROWS]
                np.multiply(part, part, out=part)
                variance += share @ part
        variance /= total
        if not np.isfinite(variance).all():
            column = int(np.flatnonzero(~np.isfinite(variance))[0])
            raise ValueError(f"column {column} has numbers that are too large to standardise")
        return cls(total, mean, variance)

    def with_more(self, other: Standardiser) -> Standardiser:
        """The standardiser of the rows of both.

        Source: Chan, Golub and LeVeque 1983, eq. 1.5.
        """
        total = self.total + other.total
        share = other.total / total
        apart = other.mean - self.mean
        mean = self.mean + apart * share
        variance = self.variance + (other.variance - self.variance) * share
        return Standardiser(total, mean, variance + apart * apart * share * (1 - share))

    @property
    def scale(self) -> NDArray[np.float64]:
        """The deviation of each column; 1 for a constant one, which becomes 0."""
        deviation = np.sqrt(self.variance)
        return np.where(deviation > _CONSTANT * np.abs(self.mean), deviation, 1.0)

    def rows(self, rows: Floats, dtype: str) -> Floats:
        """The standardised rows, a new array of this dtype, C-contiguous."""
        out = np.empty(rows.shape, dtype=dtype)
        scale = self.scale
        for low in range(0, len(rows), _ROWS):
            part = rows[low : low + _ROWS] - self.mean
            np.divide(part, scale, out=out[low : low + _ROWS], casting="same_kind")
        return out
