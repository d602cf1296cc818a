"""Training rows in memory, converted as a slot needs them or once: the same rows either way."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.core.model import Preprocessing
from distsgd.data.split import Split
from distsgd.errors import UsageError

__all__ = ["Rows", "choose_cache", "open_rows"]

_MIB = 2**20


class Rows(Protocol):
    """Gives raw rows (`Preprocessing.raw_buffer`) of the training examples."""

    def gather(self, indices: NDArray[np.int64], out: Floats) -> None:
        """Write the rows of the examples at ``indices``, in that order.

        Args:
            indices: shape (slots, examples).
            out: shape (slots, examples, columns), each slot contiguous, from a `raw_buffer`.
        """
        ...


class _Converted:
    """Rows that are floats already."""

    def __init__(self, split: Split, preprocessing: Preprocessing) -> None:
        self._cache = preprocessing.raw_buffer(len(split), "float32")
        low = 0
        for pixels, _ in split.batches():
            np.copyto(self._cache[low : low + len(pixels), : preprocessing.features], pixels)
            low += len(pixels)

    def gather(self, indices: NDArray[np.int64], out: Floats) -> None:
        """See `Rows`."""
        for slot, rows in zip(indices, out, strict=True):
            np.take(self._cache, slot, axis=0, out=rows, mode="clip")


class _Pixels:
    """Rows that are converted when they are gathered, from one piece of memory or from shards."""

    def __init__(self, split: Split, features: int, most_rows: int) -> None:
        self._split = split
        self._buffer = np.empty((most_rows, features), dtype=np.uint8)

    def gather(self, indices: NDArray[np.int64], out: Floats) -> None:
        """See `Rows`."""
        pixels = self._buffer[: indices.size]
        self._split.gather(indices.reshape(-1), pixels)
        features = pixels.shape[1]
        np.copyto(out[:, :, :features], pixels.reshape(*indices.shape, features))


def choose_cache(
    cache: str, budget: int, preprocessing: Preprocessing, examples: int, dtype: str
) -> str:
    """Where the rows of a training are to come from: "float32", "uint8" or "shards".

    "auto" is "uint8": a random row of 3 KB and its conversion take less time than a random row
    of 12 KB that is converted already, and a quarter of the memory.

    Args:
        cache: "auto", "float32" or "uint8".
        budget: MiB of memory that each process may give to it.
        preprocessing: has the length of a row.
        examples: how many rows there are.
        dtype: of the training.

    Raises:
        UsageError: what was asked for is not possible.
    """
    if cache == "float32":
        needed = examples * preprocessing.columns * 4
        if dtype != "float32":
            raise UsageError(
                f"--set cache=float32 does not go with --set dtype={dtype}",
                "Give --set cache=uint8",
            )
        if needed > budget * _MIB:
            raise UsageError(
                f"--set cache=float32 needs {-(-needed // _MIB)} MiB in each process, more than "
                f"--set cache_budget={budget}",
                "Raise the budget, or give --set cache=uint8, which needs a quarter",
            )
        return "float32"
    return "uint8" if examples * preprocessing.features <= budget * _MIB else "shards"


def open_rows(split: Split, preprocessing: Preprocessing, cache: str, most_rows: int) -> Rows:
    """The rows of a split.

    Args:
        split: the examples.
        preprocessing: has the layout of a row.
        cache: what `choose_cache` has chosen.
        most_rows: the most that are gathered at once.
    """
    if cache == "float32":
        return _Converted(split, preprocessing)
    kept = split.in_memory() if cache == "uint8" else split
    return _Pixels(kept, preprocessing.features, most_rows)
