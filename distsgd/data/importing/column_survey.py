"""Survey a sample of the rows: the range of the bulk of each column, and what is unusual."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from distsgd.data.columns import Columns
from distsgd.data.standardising import MARGIN, bulk
from distsgd.data.text_files import escaped, some_of
from distsgd.spelling import spelling

__all__ = ["ColumnSurvey"]

_NUMBERS_AT_ONCE = 1 << 20
_FAR = 8.0
"""Ranges wider than this many times the bulk are clipped; at 8 the bulk has 32 of 256 steps."""

_FAR_OF_IMAGES = 32.0
"""The same for images, which usually have a few bright pixels."""

_NEAR = 1e-6
"""Spreads by which a number may be beyond its range without being called clipped."""

_NEARLY_ALL = 0.75
_ENOUGH_ROWS = 20

Array = NDArray[np.float64]


class ColumnSurvey:
    """Finds outliers and other unusual columns in a sample of rows.

    The bulk of a column is the range between its first and its last decile. If that is a single
    number, as in a column of zeros with a few others, the bulk of the others is added.

    Args:
        sample: some of the rows, shape (rows, features).
        total: number of all rows.
        names: names of the columns; empty if they have none.
        words: columns that hold words, which have nothing to be surveyed.
    """

    def __init__(
        self,
        sample: NDArray[np.generic],
        total: int,
        names: Sequence[str],
        words: Collection[int] = (),
    ) -> None:
        self._sample, self._total, self._names, self._words = sample, total, names, words
        self._clipped: list[str] = []

    def without_outliers(self, scale: Columns) -> Columns:
        """A scale whose ranges are not much wider than the bulk of the numbers.

        A range that is up to 8 times as wide as the bulk, or 32 times for images, is not changed.

        Args:
            scale: the scale of all columns; columns that share a range are surveyed together.
        """
        low, high = np.array(scale.low), np.array(scale.high)
        if scale.features == 1 and self._sample.shape[1] > 1:
            rows = max(1, _NUMBERS_AT_ONCE // self._sample.shape[1])
            stride = -(-len(self._sample) // rows)
            values = np.sort(self._sample[::stride].astype(np.float64), axis=None)
            self._narrow(values[:, None], low, high, 0, _FAR_OF_IMAGES)
        else:
            for first, block in self._blocks():
                self._narrow(block, low, high, first, _FAR)
        return replace(scale, low=tuple(low.tolist()), high=tuple(high.tolist()))

    def greatest_without_outliers(self, greatest: float) -> float:
        """The upper end of the range from 0 that all columns of whole numbers share.

        Args:
            greatest: the greatest of all numbers, which is the end unless it is far beyond the
                bulk of every column.
        """
        widest = reach = 0.0
        for _, block in self._blocks():
            bulk_low, bulk_high = bulk(block)
            widest = max(widest, float((bulk_high - bulk_low).max()))
            reach = max(reach, float((bulk_high + MARGIN * (bulk_high - bulk_low)).max()))
        reach = float(np.ceil(reach))
        if not 0 < widest < greatest / _FAR or reach >= greatest:
            return greatest
        for first, block in self._blocks():
            self._clipped += self._names_of(first, block[-1] > reach)
        return reach

    def note_clipped(self, columns: Columns, low: Array, high: Array) -> None:
        """Note which standardised columns have numbers that are clipped.

        Args:
            columns: how they are clipped.
            low: the least number of each column.
            high: the greatest number of each column.
        """
        wide = np.array(columns.spread) * _NEAR
        beyond = (low < columns.low - wide) | (high > columns.high + wide)
        beyond[list(self._words)] = False
        self._clipped += self._names_of(0, beyond)

    def notices(self, scale: Columns | None) -> Iterator[str]:
        """What the user should know about the columns, a line each.

        Args:
            scale: the scale of the columns; None for pixels that are kept as they are.
        """
        if self._clipped:
            yield (
                f"{_columns(self._clipped)}: a few outliers are clipped (`distsgd data info` shows "
                "the range)"
            )
        counting: list[str] = []
        for first, block in self._blocks():
            counts = self._are_row_numbers(block)
            counts[[n - first for n in self._words if 0 <= n - first < len(counts)]] = False
            counting += self._names_of(first, counts)
            if scale is not None:
                part = _part(scale, first, block.shape[1])
                for name, share in self._on_one_step(first, block, part.rows(block)):
                    yield (
                        f"{_columns([name])}: {share:.0%} of the rows fall on one of its 256 "
                        "steps because of outliers: correct these, or leave the column out"
                    )
        if counting:
            yield (
                f"{_columns(counting)} {'number' if len(counting) > 1 else 'numbers'} the rows; "
                f"leave a mere row number out with {spelling().setting('drop')}"
            )

    def _blocks(self) -> Iterator[tuple[int, Array]]:
        """Blocks of columns: number of the first one, and sorted values, shape (rows, columns)."""
        columns = max(1, _NUMBERS_AT_ONCE // max(1, len(self._sample)))
        for first in range(0, self._sample.shape[1], columns):
            block = np.array(self._sample[:, first : first + columns], dtype=np.float64)
            block.sort(axis=0)
            yield first, block

    def _narrow(self, block: Array, low: Array, high: Array, first: int, most: float) -> None:
        """Narrow the ranges of a block of columns in place, where they are too wide."""
        bulk_low, bulk_high = bulk(block)
        width = bulk_high - bulk_low
        here = slice(first, first + block.shape[1])
        far = (width > 0) & (high[here] - low[here] > most * width)
        if far.any():
            new_low = np.maximum(low[here], bulk_low - MARGIN * width)
            new_high = np.minimum(high[here], bulk_high + MARGIN * width)
            low[here] = np.where(far, new_low, low[here])
            high[here] = np.where(far, new_high, high[here])
            self._clipped += self._names_of(first, far)

    def _are_row_numbers(self, block: Array) -> NDArray[np.bool_]:
        """Which columns have a different whole number in each row, with hardly any gaps."""
        if len(block) < _ENOUGH_ROWS:
            return np.zeros(block.shape[1], dtype=np.bool_)
        whole = (block % 1 == 0).all(axis=0)
        distinct = (np.diff(block, axis=0) > 0).all(axis=0)
        found: NDArray[np.bool_] = whole & distinct & (block[-1] - block[0] < 1.5 * self._total)
        return found

    def _on_one_step(
        self, first: int, block: Array, steps: NDArray[np.uint8]
    ) -> Iterator[tuple[str, float]]:
        """Columns with nearly all rows on one step though their numbers differ, and the share."""
        middle = len(block) // 2
        same = steps == steps[middle]
        share, alike = same.mean(axis=0), (block == block[middle]).mean(axis=0)
        lost = (share > _NEARLY_ALL) & (share - alike > 0.5)
        for column in np.flatnonzero(lost):
            yield self._name(first + int(column)), float(share[column])

    def _names_of(self, first: int, chosen: NDArray[np.bool_]) -> list[str]:
        return [self._name(first + int(column)) for column in np.flatnonzero(chosen)]

    def _name(self, column: int) -> str:
        return f"'{escaped(self._names[column])}'" if self._names else str(column + 1)


def _columns(names: list[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} {some_of(names)}"


def _part(scale: Columns, first: int, columns: int) -> Columns:
    """The scale of some columns."""
    if scale.features == 1:
        return scale
    here = slice(first, first + columns)
    return Columns(names=(), low=scale.low[here], high=scale.high[here])
