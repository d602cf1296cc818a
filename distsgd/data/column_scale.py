"""Numbers of any range as pixels: 256 steps between a lowest and a highest value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Bytes

__all__ = ["ColumnScale"]

_NUMBERS_AT_ONCE = 1 << 20
_NO_WIDTH = 1e-200
"""A column that changes by less than this does not."""


@dataclass(frozen=True, kw_only=True)
class ColumnScale:
    """How numbers become pixels, column by column, or all columns alike.

    A number x becomes round(255 (x - low) / (high - low)), cut to 0 ... 255. For a linear model
    that loses less than the numbers' own noise, and keeps shards, kernels and checksums those of
    images.

    Attributes:
        names: of the columns; empty for arrays, whose columns have none.
        low: what becomes 0; one number, or one a column.
        high: what becomes 255, likewise.
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
        """Columns; 1 if all are treated alike."""
        return len(self.low)

    def pixels(self, numbers: NDArray[np.float64]) -> Bytes:
        """The pixels of numbers, shape (rows, features); a column that never changes becomes 0."""
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
        """As it stands in a manifest and in a checkpoint."""
        return {"names": list(self.names), "low": list(self.low), "high": list(self.high)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ColumnScale:
        """The scale that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        return cls(
            names=tuple(str(name) for name in content["names"]),
            low=tuple(float(x) for x in content["low"]),
            high=tuple(float(x) for x in content["high"]),
        )
