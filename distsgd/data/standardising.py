"""Standardise columns: clip what is far from the bulk of a column, then centre and scale it.

The bulk of a column is the range between its first and its last decile. If that is a single number,
as in a column of zeros with a few others, the bulk of the others is added. Numbers further away
than three times the width of the bulk are clipped before the mean and the standard deviation are
taken, so one value of 1e6 does not squash its column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.data.columns import Columns

__all__ = ["MARGIN", "SAMPLE_ROWS", "bulk", "standardised", "standardised_array"]

SAMPLE_ROWS = 4096
"""Rows of a sample, evenly spaced."""

MARGIN = 3.0
"""A clipped range extends this many widths of the bulk beyond it, on either side."""

_NUMBERS_AT_ONCE = 1 << 20
_LEAST_SPREAD = 1e-12
"""A smaller spread, relative to the mean, is that of rounding: the column counts as constant."""

Array = NDArray[np.float64]


def bulk(block: Array) -> tuple[Array, Array]:
    """The lower and the upper end of the bulk of each sorted column."""
    tenth = len(block) // 10
    low, high = block[tenth].copy(), block[-1 - tenth].copy()
    for column in np.flatnonzero(low == high):
        others = block[block[:, column] != low[column], column]
        if len(others):
            tenth = len(others) // 10
            low[column] = min(low[column], others[tenth])
            high[column] = max(high[column], others[-1 - tenth])
    return low, high


def standardised(
    sample: NDArray[Any],
    parts: Callable[[], Iterable[NDArray[Any]]],
    *,
    names: Sequence[str] = (),
    words: Sequence[Sequence[str]] = (),
    fill: bool = False,
) -> Columns:
    """Standardised columns, with the statistics of some training rows.

    Args:
        sample: some of the rows, shape (rows, columns), which tell where the bulk is.
        parts: yields all rows, in parts of shape (rows, columns), each time it is called.
        names: names of the columns, if they have any.
        words: the words of each column, none for numbers; empty if all are numbers.
        fill: whether a missing number, NaN, is replaced by the mean.
    """
    low, high = _clipped(sample)
    count = np.zeros(len(low))
    mean, squares = np.zeros(len(low)), np.zeros(len(low))
    for part in _cut(parts()):
        values = np.clip(np.asarray(part, dtype=np.float64), low, high)
        here = np.isfinite(values)
        own = here.sum(axis=0)
        total = np.maximum(1, count + own)
        own_mean = np.where(here, values, 0).sum(axis=0) / np.maximum(1, own)
        apart = own_mean - mean
        squares += (np.where(here, values - own_mean, 0) ** 2).sum(axis=0)
        squares += apart**2 * (count * own / total)
        mean += apart * (own / total)
        count += own
    spread = np.sqrt(squares / np.maximum(1, count))
    constant = spread <= _LEAST_SPREAD * np.abs(mean)
    spread[constant] = 1.0
    low[constant] = high[constant] = mean[constant]
    coded = np.array([bool(own) for own in words] or [False] * len(low))
    low[coded] = high[coded] = mean[coded] = 0.0
    spread[coded] = 1.0
    middle = np.where(coded, -1.0, mean)
    return Columns(
        names=tuple(names),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        mean=tuple(mean.tolist()),
        spread=tuple(spread.tolist()),
        words=tuple(map(tuple, words)),
        fill=tuple(middle.tolist()) if fill else (),
    )


def standardised_array(
    rows: NDArray[Any], *, names: Sequence[str] = (), fill: bool = False
) -> Columns:
    """Standardised columns with the statistics of an array of training rows.

    Args:
        rows: shape (rows, columns).
        names: names of the columns, if they have any.
        fill: whether a missing number, NaN, is replaced by the mean.
    """
    stride = max(1, -(-len(rows) // SAMPLE_ROWS))
    return standardised(rows[::stride], lambda: [rows], names=names, fill=fill)


def _cut(parts: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """The same rows in parts of a bounded size."""
    for part in parts:
        some = max(1, _NUMBERS_AT_ONCE // max(1, part.shape[1]))
        for start in range(0, len(part), some):
            yield part[start : start + some]


def _clipped(sample: NDArray[Any]) -> tuple[Array, Array]:
    """The range of each column beyond which numbers are clipped, each of shape (columns,)."""
    columns = sample.shape[1]
    low, high = np.empty(columns), np.empty(columns)
    some = max(1, _NUMBERS_AT_ONCE // max(1, len(sample)))
    for first in range(0, columns, some):
        block = np.array(sample[:, first : first + some], dtype=np.float64)
        block.sort(axis=0)  # NaN comes last
        here = (~np.isnan(block)).sum(axis=0)
        middle = block[np.maximum(0, here - 1) // 2, np.arange(block.shape[1])]
        middle[here == 0] = 0.0
        missing = np.isnan(block)
        if missing.any():
            block = np.where(missing, middle, block)
            block.sort(axis=0)
        bulk_low, bulk_high = bulk(block)
        reach = MARGIN * (bulk_high - bulk_low)
        low[first : first + some] = bulk_low - reach
        high[first : first + some] = bulk_high + reach
    return low, high
