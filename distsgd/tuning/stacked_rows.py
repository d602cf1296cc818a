"""Training rows for stacked kernels: gathered once for all models, in order or in lanes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.data.split import Split

__all__ = ["GatheredRows"]


class GatheredRows:
    """Gathers raw rows; see `distsgd.core.model.StackedRows`.

    Args:
        split: the examples.
        features: of an example.
        most: rows that are gathered at once.
        lanes: the number of lanes in which rows are mostly wanted; 1 for rows as they are.
        kept: whether all rows are kept in memory.
    """

    def __init__(self, split: Split, features: int, most: int, lanes: int, *, kept: bool) -> None:
        self._split, self._lanes, self.lanes = split, lanes, lanes
        dtype = split.dtype
        self._kept = None
        if kept:
            self._kept = np.empty((len(split), features), dtype)
            low = 0
            for part, _ in split.batches():
                np.copyto(self._in_lanes(self._kept[low : low + len(part)]), self._plain(part))
                low += len(part)
        self._buffer = np.empty((most, features), dtype)
        self._mixed = np.empty_like(self._buffer)
        self._rows = self._buffer[None, :0]

    def gather(self, indices: NDArray[np.int64]) -> None:
        """Copy the rows of these examples, shape (slots, examples)."""
        into = self._buffer[: indices.size]
        if self._kept is not None:
            np.take(self._kept, indices.reshape(-1), axis=0, out=into, mode="clip")
        elif self._lanes == 1:
            self._split.gather(indices.reshape(-1), into)
        else:
            rows = self._mixed[: indices.size]
            self._split.gather(indices.reshape(-1), rows)
            np.copyto(self._in_lanes(into), self._plain(rows))
        self._rows = into.reshape(*indices.shape, -1)

    def write(self, first: int, out: Floats, example: int = 0, column: int = 0, /) -> None:
        """See `StackedRows.write`."""
        slots, examples, columns = out.shape
        rows = self._rows[first : first + slots, example : example + examples]
        if self._lanes > 1:
            lanes = self._in_lanes(rows)
            rows = np.ascontiguousarray(lanes).reshape(rows.shape)
        part = rows[..., column : column + columns]
        np.copyto(out[..., : part.shape[-1]], part)

    def write_lanes(self, out: Floats) -> None:
        """See `StackedRows.write_lanes`."""
        own = self._rows.reshape(*self._rows.shape[:2], self._lanes, -1)
        np.copyto(out[..., : own.shape[-1]], own)

    def _plain(self, rows: NDArray[np.generic]) -> NDArray[np.generic]:
        """Rows in order, shape (..., features / lanes, lanes)."""
        return rows.reshape(*rows.shape[:-1], -1, self._lanes)

    def _in_lanes(self, rows: NDArray[np.generic]) -> NDArray[np.generic]:
        """Rows in lanes, as if they were in order."""
        return rows.reshape(*rows.shape[:-1], self._lanes, -1).swapaxes(-1, -2)
