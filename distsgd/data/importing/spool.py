"""Rows on disk until all of them are known, with what must be known of them to make shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Bytes, Ints
from distsgd.data.column_scale import ColumnScale

__all__ = ["ColumnStatistics", "Spool"]

_CUT = 4.0
"""Standard deviations from the mean beyond which numbers are cut."""


class ColumnStatistics:
    """Least, greatest, mean and variance of columns, as rows come (Chan et al. 1979).

    Args:
        features: number of columns.
    """

    def __init__(self, features: int) -> None:
        self._rows = 0
        self._low, self._high = np.full(features, np.inf), np.full(features, -np.inf)
        self._mean, self._squares = np.zeros(features), np.zeros(features)

    def add(self, values: NDArray[np.float64]) -> None:
        """Some rows, shape (rows, features)."""
        if not (rows := len(values)):
            return
        self._low = np.minimum(self._low, values.min(axis=0))
        self._high = np.maximum(self._high, values.max(axis=0))
        mean, total = values.mean(axis=0), self._rows + rows
        apart = mean - self._mean
        squares = ((values - mean) ** 2).sum(axis=0)
        self._squares += squares + apart**2 * (self._rows * rows / total)
        self._mean += apart * (rows / total)
        self._rows = total

    def scale(self, names: tuple[str, ...], alike: bool) -> ColumnScale:
        """From the least to the greatest number, cut at 4 standard deviations from the mean.

        Args:
            names: of the columns.
            alike: whether all columns are of one kind, as pixels are.
        """
        if alike:
            return ColumnScale(
                names=(), low=(float(self._low.min()),), high=(float(self._high.max()),)
            )
        spread = _CUT * np.sqrt(self._squares / max(1, self._rows))
        low = np.maximum(self._low, self._mean - spread)
        high = np.minimum(self._high, self._mean + spread)
        return ColumnScale(names=names, low=tuple(low.tolist()), high=tuple(high.tolist()))


class Spool:
    """Rows of a split in a raw file.

    Args:
        path: of the file, which must not exist.
        features: numbers a row.

    Attributes:
        labels: of the rows, as numbers of classes in the order in which they came.
        are_pixels: whether all numbers are whole and from 0 to 255.
        greatest: of the numbers; of none, 0.
    """

    def __init__(self, path: Path, features: int) -> None:
        self._path, self._features = path, features
        self._file: BinaryIO = path.open("xb")
        self._dtype: np.dtype[Any] = np.dtype(np.uint8)
        self._labels: list[Ints] = []
        self.are_pixels = True
        self.greatest = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._labels))

    def add(self, values: NDArray[Any], labels: Ints) -> None:
        """Some rows, all uint8 or all float64."""
        self._dtype = values.dtype
        self.greatest = max(self.greatest, float(values.max(initial=0)))
        if values.dtype != np.uint8 and self.are_pixels:
            self.are_pixels = bool(((values >= 0) & (values <= 255) & (values % 1 == 0)).all())
        self._file.write(np.ascontiguousarray(values).data)
        self._labels.append(labels)

    @property
    def labels(self) -> Ints:
        """Shape (rows,)."""
        return np.concatenate(self._labels) if self._labels else np.empty(0, np.int32)

    def flush(self) -> None:
        """Make what has come readable."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def values(self, span: slice) -> NDArray[Any]:
        """Some of the rows as they came, shape (rows, features), mapped from the file."""
        shape = len(self), self._features
        return np.memmap(self._path, self._dtype, "r", shape=shape)[span]

    def sample(self, rows: int) -> NDArray[Any]:
        """At most `rows` rows, evenly spaced, shape (rows, features)."""
        return self.values(slice(None, None, max(1, -(-len(self) // rows))))

    def pixels(self, span: slice, scale: ColumnScale | None) -> Bytes:
        """Some of the rows as pixels, shape (rows, features)."""
        values = self.values(span)
        return np.array(values, dtype=np.uint8) if scale is None else scale.pixels(values)
