"""A dataset of arrays in memory, for a training in this process that needs no files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Ints
from distsgd.data.columns import Columns
from distsgd.data.dataset import Dataset
from distsgd.data.manifest import Manifest, Shard
from distsgd.data.split import Split
from distsgd.data.verified import FileChecksum

__all__ = ["ArrayDataset", "ArraySplit"]

_FILE = "memory.arrow"
"""A manifest names a file for every shard; this one does not exist."""


class ArraySplit(Split):
    """Examples in an array, which is not copied.

    Args:
        rows: shape (rows, features), float32 or float64, standardised.
        labels: shape (rows,), the number of each example's class.
        weights: of the examples, shape (rows,), or None.
    """

    def __init__(
        self, rows: NDArray[Any], labels: Ints, weights: NDArray[np.float64] | None = None
    ) -> None:
        self._unchecked = []
        self._rows = [rows]
        self._starts = np.array([0, len(rows)])
        self._labels = labels
        self._dtype = rows.dtype
        self._weights = weights

    @property
    def rows(self) -> NDArray[Any]:
        """The array."""
        return self._rows[0]

    def verify(self) -> tuple[FileChecksum, ...]:
        """There are no files to check."""
        return ()

    def batches(self) -> Iterator[tuple[NDArray[Any], Ints]]:
        """All examples at once, as views (rows, labels)."""
        yield self.rows, self._labels


class ArrayDataset(Dataset):
    """A dataset of arrays, which only a training in this process can read.

    Args:
        train: the training examples.
        classes: names of the classes, by number.
        test: the test examples; None for the training examples once more.
    """

    def __init__(
        self, train: ArraySplit, classes: tuple[str, ...], test: ArraySplit | None = None
    ) -> None:
        self.folder = Path()
        self._remote, self._stream = None, False
        rows, weights = train.rows, train.weights
        shard = Shard(_FILE, len(rows), rows.nbytes, "")
        self.manifest = Manifest(
            name="arrays",
            shape=rows.shape[1:],
            classes=classes,
            pixel_sums=(),
            train=(shard,),
            test=(),
            columns=Columns.as_they_are(rows.shape[1]),
            mean_weight=None if weights is None else float(weights.mean()),
        )
        self.train = train
        self.test = train if test is None else test
