"""Quantise numbers of any range to pixels: 256 steps between a lowest and a highest value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Bytes

__all__ = ["ColumnScale"]

_NUMBERS_AT_ONCE = 1 << 20
_NO_WIDTH = 1e-200
"""A column with a smaller range counts as constant."""


@dataclass(frozen=True, kw_only=True)
class ColumnScale:
    """How numbers become pixels, with one range for each column or one for all.

    A number x becomes round(255 (x - low) / (high - low)), clipped to 0 ... 255. For a linear
    model that loses less than the noise of the numbers, and shards, kernels and checksums are
    those of images.

    Attributes:
        names: names of the columns; empty for arrays, whose columns have none.
        low: the number that becomes 0; one for all columns, or one for each.
        high: the number that becomes 255, likewise.

    Raises:
        ValueError: the attributes do not match, or are not finite.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.low or len(self.low) != len(self.high):
            raise ValueError("a scale needs as many lows as highs")
        if self.names and len(self.names) != len(self.low):
            raise ValueError("a scale needs as many names as columns")
        if not all(np.isfinite((*self.low, *self.high))):
            raise ValueError("a scale needs finite numbers")

    @property
    def features(self) -> int:
        """Number of columns; 1 if all have the same range."""
        return len(self.low)

    def pixels(self, numbers: NDArray[np.float64]) -> Bytes:
        """The pixels of numbers, both of shape (rows, features); a constant column becomes 0."""
        low, high = np.array(self.low, dtype=np.float64), np.array(self.high, dtype=np.float64)
        width = high - low
        factor = np.divide(255.0, width, out=np.zeros_like(width), where=width > _NO_WIDTH)
        steps: Bytes = np.empty(numbers.shape, dtype=np.uint8)
        some = max(1, _NUMBERS_AT_ONCE // max(1, numbers.shape[1]))
        for start in range(0, len(numbers), some):
            part = numbers[start : start + some] - low
            part *= factor
            steps[start : start + some] = np.rint(np.clip(part, 0, 255, out=part), out=part)
        return steps

    def to_json(self) -> dict[str, Any]:
        """The form that manifests and checkpoints have."""
        return {"names": list(self.names), "low": list(self.low), "high": list(self.high)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ColumnScale:
        """The scale from what `to_json` returned.

        Raises:
            KeyError, TypeError, ValueError: it is malformed.
        """
        return cls(
            names=tuple(str(name) for name in content["names"]),
            low=tuple(float(x) for x in content["low"]),
            high=tuple(float(x) for x in content["high"]),
        )
