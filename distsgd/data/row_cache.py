"""Training rows as floats, converted once or when a slot needs them: the same rows either way."""

from __future__ import annotations

from copy import copy
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.core.model import Preprocessing
from distsgd.data.columns import PIXELS
from distsgd.data.split import Split
from distsgd.errors import UsageError
from distsgd.spelling import spelling

__all__ = ["Rows", "choose_cache", "gathered_slots", "open_rows"]

_MIB = 2**20

_GATHERED = 256
"""Examples to gather at once: 0.8 MB of the images of CIFAR-10."""


def gathered_slots(slot_size: int, most: int) -> int:
    """How many slots a worker gathers at once.

    Args:
        slot_size: examples of a full slot.
        most: slots of a minibatch.
    """
    return min(max(1, _GATHERED // slot_size), most)


class Rows(Protocol):
    """Gathers raw rows (`Preprocessing.raw_buffer`) of the training examples, in two steps.

    `gather` waits for the memory, and can be done ahead. `write` writes four times as much: best
    when the rows are needed, a few at a time into a buffer that stays in the cache.
    """

    def gather(self, indices: NDArray[np.int64]) -> None:
        """Choose examples for `write`, and copy their pixels.

        Args:
            indices: numbers of the examples, shape (slots, examples).
        """
        ...

    def write(self, first: int, out: Floats, example: int = 0, column: int = 0, /) -> None:
        """Write rows, or parts of them, of some of the slots that were gathered last.

        Args:
            first: the first of them.
            out: shape (slots, examples, columns); of columns that are no pixels, a `raw_buffer`.
                Each slot is contiguous.
            example: the first of each slot.
            column: the first of each example.
        """
        ...

    def beside(self) -> Rows:
        """The same rows, gathered independently of what is gathered here."""
        ...


class _Converted:
    """Rows that were converted once."""

    def __init__(self, split: Split, preprocessing: Preprocessing) -> None:
        self._cache = preprocessing.raw_buffer(len(split), "float32")
        low = 0
        for rows, _ in split.batches():
            np.copyto(self._cache[low : low + len(rows), : preprocessing.features], rows)
            low += len(rows)
        self._indices = np.empty((0, 0), np.int64)

    def gather(self, indices: NDArray[np.int64]) -> None:
        """See `Rows`."""
        self._indices = indices

    def write(self, first: int, out: Floats, example: int = 0, column: int = 0, /) -> None:
        """See `Rows`."""
        cache = self._cache[:, column : column + out.shape[2]]
        for slot, rows in enumerate(out, first):
            indices = self._indices[slot, example : example + len(rows)]
            np.take(cache, indices, axis=0, out=rows, mode="clip")

    def beside(self) -> _Converted:
        """See `Rows`."""
        return copy(self)


class _Stored:
    """Rows that are converted when they are written, from one array or from shards."""

    def __init__(self, split: Split, features: int, most_rows: int) -> None:
        self._split = split
        self._buffer = np.empty((most_rows, features), dtype=split.dtype)
        self._rows = self._buffer[None, :0]

    def gather(self, indices: NDArray[np.int64]) -> None:
        """See `Rows`."""
        rows = self._buffer[: indices.size]
        self._split.gather(indices.reshape(-1), rows)
        self._rows = rows.reshape(*indices.shape, -1)

    def write(self, first: int, out: Floats, example: int = 0, column: int = 0, /) -> None:
        """See `Rows`."""
        slots, examples, columns = out.shape
        rows = self._rows[
            first : first + slots, example : example + examples, column : column + columns
        ]
        np.copyto(out[:, :, : rows.shape[2]], rows)

    def beside(self) -> _Stored:
        """See `Rows`."""
        return _Stored(self._split, self._buffer.shape[1], len(self._buffer))


def choose_cache(
    cache: str,
    budget: int,
    preprocessing: Preprocessing,
    examples: int,
    dtype: str,
    values: str = PIXELS,
) -> str:
    """Choose where the rows of a training come from: "float32", "uint8" or "shards".

    "auto" is "uint8", rows as the shards hold them: to read a random row of 3 KB and convert it
    takes less time than to read a converted one of 12 KB, and a quarter of the memory.

    Args:
        cache: "auto", "float32" or "uint8".
        budget: MiB of memory that each process may use.
        preprocessing: has the length of a row.
        examples: number of rows.
        dtype: dtype of the training.
        values: dtype of the rows in the shards.

    Raises:
        UsageError: "float32" does not fit the budget or the dtype.
    """
    given = spelling().given
    if cache == "float32":
        needed = examples * preprocessing.columns * 4
        if dtype != "float32":
            raise UsageError(
                f"{given('cache', cache)} does not go with {given('dtype', dtype)}",
                f"Give {given('cache', 'uint8')}",
            )
        if needed > budget * _MIB:
            raise UsageError(
                f"{given('cache', cache)} needs {-(-needed // _MIB)} MiB in each process, more "
                f"than {given('cache_budget', budget)}",
                f"Raise the budget, or give {given('cache', 'uint8')}, which needs a quarter",
            )
        return "float32"
    size = np.dtype(values).itemsize * examples * preprocessing.features
    return "uint8" if size <= budget * _MIB else "shards"


def open_rows(split: Split, preprocessing: Preprocessing, cache: str, most_rows: int) -> Rows:
    """The rows of a split.

    Args:
        split: the examples.
        preprocessing: has the layout of a row.
        cache: the choice of `choose_cache`.
        most_rows: most rows that are gathered at once.
    """
    if cache == "float32":
        return _Converted(split, preprocessing)
    kept = split.in_memory() if cache == "uint8" else split
    return _Stored(kept, preprocessing.features, most_rows)
