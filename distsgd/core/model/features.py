"""From pixels to features: the recipe that is part of a model and travels with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distsgd.core.arrays import Bytes, Floats, bias_column, padded_columns

__all__ = ["Preprocessing"]


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """Centre on the training mean, divide by a scale, append the constant 1 of the bias.

    Attributes:
        mean: shape (features,), mean of each pixel over the training set.
        scale: what centred pixels are divided by; 1 leaves them.
    """

    mean: Floats
    scale: float

    @property
    def features(self) -> int:
        """Number of pixels of an example."""
        return len(self.mean)

    @property
    def columns(self) -> int:
        """Columns of a buffer of features: pixels, the bias, and padding."""
        return padded_columns(self.features)

    def buffer(self, rows: int, dtype: str) -> Floats:
        """A buffer for `fill`, shape (rows, columns): bias 1, padding 0."""
        out = np.zeros((rows, self.columns), dtype=dtype)
        out[:, bias_column(self.features)] = 1
        return out

    def raw_buffer(self, rows: int, dtype: str) -> Floats:
        """A buffer for pixels as they are, shape (rows, columns): bias = scale, padding 0.

        Features are (row - `centre`) / scale: linear, so that a product with features is had
        from a product with raw rows, and no pixel is ever centred or scaled.
        """
        out = np.zeros((rows, self.columns), dtype=dtype)
        out[:, bias_column(self.features)] = self.scale
        return out

    def centre(self, dtype: str) -> Floats:
        """What is subtracted from raw rows, shape (columns,): the mean, and 0 for the bias."""
        out = np.zeros(self.columns, dtype=dtype)
        out[: self.features] = self.mean
        return out

    def fill(self, pixels: Bytes, out: Floats) -> None:
        """Write (pixels - mean) / scale into the first columns of ``out``.

        Args:
            pixels: shape (rows, features), uint8.
            out: shape (rows, columns) from `buffer`; other columns are left alone.
        """
        part = out[:, : self.features]
        part[...] = pixels
        np.subtract(part, self.mean.astype(out.dtype, copy=False), out=part)
        np.multiply(part, out.dtype.type(1 / self.scale), out=part)
