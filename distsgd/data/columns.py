"""Columns of a table as features: standardised floats, or 256 steps; and words, one feature each.

A column of numbers becomes one feature. By default it is standardised: far values are clipped, the
mean is subtracted, and the rest is divided by the standard deviation. Or it is put on 256 steps
between a lowest and a highest value, so that rows are those of images, a quarter of the size, and
fit exact arithmetic. A column of words becomes a feature for each of its words ("one-hot").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Values

__all__ = ["FLOATS", "PIXELS", "VALUES", "Columns"]

PIXELS, FLOATS = "uint8", "float32"
VALUES = (PIXELS, FLOATS)
"""What the rows of a dataset may hold."""

_NUMBERS_AT_ONCE = 1 << 18
_NO_WIDTH = 1e-200
"""A column with a smaller range counts as constant."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How the columns of a table become features.

    A number x of a standardised column becomes (clip(x, low, high) - mean) / spread. On 256 steps
    it becomes round(255 (x - low) / (high - low)), clipped to 0 ... 255. A word becomes 1 (255 on
    steps) in its own feature and 0 in those of the other words; an unknown word is 0 in all.

    Attributes:
        names: names of the columns; empty for arrays, whose columns have none.
        low: the least number of each column, to which lesser ones are clipped; on steps, one for
            each column or one for all.
        high: the greatest number, likewise.
        mean: what is subtracted from each column; empty for columns on steps.
        spread: what is then divided by, above 0; empty for columns on steps.
        words: the words of each column, and none for a column of numbers; empty if all are such.
        fill: the number that a missing one of each column is replaced by; empty if rows without a
            number are refused. A missing word is 0 in all features of its column.

    Raises:
        ValueError: the attributes do not match, or are not finite.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()
    fill: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.low)
        if not count or count != len(self.high):
            raise ValueError("a scale needs as many lows as highs")
        if self.names and len(self.names) != count:
            raise ValueError("a scale needs as many names as columns")
        if len(self.mean) not in (0, count) or len(self.mean) != len(self.spread):
            raise ValueError("a scale needs a mean and a spread for each column, or for none")
        if any(len(part) not in (0, count) for part in (self.words, self.fill)):
            raise ValueError("a scale needs words and fillings for each column, or for none")
        if not all(np.isfinite((*self.low, *self.high, *self.mean, *self.spread, *self.fill))):
            raise ValueError("a scale needs finite numbers")
        if self.spread and min(self.spread) <= 0:
            raise ValueError("a scale needs spreads above 0")
        if any(len(set(words)) < len(words) for words in self.words):
            raise ValueError("a scale needs different words")

    @classmethod
    def as_they_are(cls, features: int) -> Columns:
        """Floats that are features already, and are not changed (up to 1e30 in size)."""
        most = (1e30,) * features
        low = tuple(-number for number in most)
        return cls(names=(), low=low, high=most, mean=(0.0,) * features, spread=(1.0,) * features)

    @property
    def values(self) -> str:
        """The dtype of rows: "float32" if columns are standardised, "uint8" if on steps."""
        return FLOATS if self.mean else PIXELS

    @cached_property
    def features(self) -> int:
        """Number of features; 1 if there is one range for any number of columns."""
        return sum(self.widths)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Number of features of each column: 1, or the number of its words."""
        return tuple(len(words) or 1 for words in self.words) or (1,) * len(self.low)

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """A name for each feature: that of its column, or "colour=red"; empty without names."""
        words = self.words or ((),) * len(self.names)
        return tuple(
            f"{name}={word}" if word is not None else name
            for name, own in zip(self.names, words, strict=True)
            for word in (own or (None,))
        )

    def rows(self, numbers: NDArray[np.floating[Any]]) -> Values:
        """The features of some rows, which models and shards take.

        Args:
            numbers: shape (rows, columns). Of a column of words, the place of each word among
                `words`, or -1 for none of them; see `codes`. NaN is a missing number, which only
                columns with a `fill` may have.

        Returns:
            shape (rows, features), of dtype `values`.
        """
        features = self.features if self.words else numbers.shape[1]
        out: Values = np.zeros((len(numbers), features), dtype=self.values)
        some = max(1, _NUMBERS_AT_ONCE // max(1, numbers.shape[1]))
        for start in range(0, len(numbers), some):
            part = np.array(numbers[start : start + some], dtype=np.float64)
            self._write(part, out[start : start + some])
        return out

    def numbers(self, rows: Values) -> NDArray[np.float64]:
        """The numbers that rows were made of, as exactly as they tell; the inverse of `rows`.

        Args:
            rows: shape (rows, features), of dtype `values`.

        Returns:
            shape (rows, columns); of a column of words the place of the word, or -1.
        """
        low, high = self._bounds
        less = np.array(self.mean) if self.mean else low
        unit = np.array(self.spread) if self.mean else (high - low) / 255
        if not self.words:
            found: NDArray[np.float64] = less + rows * unit
            return found
        out = np.empty((len(rows), len(self.low)))
        first = 0
        for column, (words, width) in enumerate(zip(self.words, self.widths, strict=True)):
            part = rows[:, first : first + width]
            if words:
                out[:, column] = np.where(part.any(axis=1), part.argmax(axis=1), -1)
            else:
                out[:, column] = less[column] + part[:, 0] * unit[column]
            first += width
        return out

    def codes(self, column: int, words: NDArray[Any] | list[str]) -> NDArray[np.float64]:
        """The places of words among those of a column; -1 for an unknown one."""
        places = self._places[column]
        return np.array([places.get(word, -1) for word in words], dtype=np.float64)

    @cached_property
    def _places(self) -> list[dict[str, int]]:
        return [{word: place for place, word in enumerate(words)} for words in self.words]

    @cached_property
    def _bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.array(self.low, dtype=np.float64), np.array(self.high, dtype=np.float64)

    @cached_property
    def _line(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What is subtracted from each column, and then multiplied by."""
        if self.mean:
            return np.array(self.mean), 1 / np.array(self.spread)
        low, high = self._bounds
        width = high - low
        return low, np.divide(255.0, width, out=np.zeros_like(width), where=width > _NO_WIDTH)

    @cached_property
    def _layout(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The columns of numbers, and the feature of each."""
        first = np.cumsum([0, *self.widths])[:-1]
        numeric = [place for place, words in enumerate(self.words) if not words]
        chosen = np.array(numeric, dtype=np.intp)
        return chosen, first[chosen]

    def _write(self, part: NDArray[np.float64], out: Values) -> None:
        """Write the features of some rows, whose numbers are overwritten."""
        if self.fill:
            np.copyto(part, self.fill, where=np.isnan(part))
        coded = part
        (low, high), (less, factor) = self._bounds, self._line
        if self.words:
            part = part[:, (numeric := self._layout[0])]
            low, high, less, factor = (bound[numeric] for bound in (low, high, less, factor))
        if self.mean:
            np.clip(part, low, high, out=part)
        part -= less
        part *= factor
        if not self.mean:
            np.rint(np.clip(part, 0, 255, out=part), out=part)
        if not self.words:
            out[...] = part
            return
        out[:, self._layout[1]] = part
        first = 0
        for column, (words, width) in enumerate(zip(self.words, self.widths, strict=True)):
            if words:
                code = coded[:, column]
                known = np.flatnonzero((code >= 0) & (code < len(words)))
                out[known, first + code[known].astype(np.intp)] = 1 if self.mean else 255
            first += width

    def to_json(self) -> dict[str, Any]:
        """The form that manifests and checkpoints have."""
        found: dict[str, Any] = {
            "names": list(self.names), "low": list(self.low), "high": list(self.high)
        }  # fmt: skip
        for key in ("mean", "spread", "fill"):
            if numbers := getattr(self, key):
                found[key] = list(numbers)
        if self.words:
            found["words"] = [list(words) for words in self.words]
        return found

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Columns:
        """The columns from what `to_json` returned.

        Raises:
            KeyError, TypeError, ValueError: it is malformed.
        """

        def numbers(key: str) -> tuple[float, ...]:
            return tuple(float(x) for x in content.get(key, ()))

        return cls(
            names=tuple(str(name) for name in content["names"]),
            low=tuple(float(x) for x in content["low"]),
            high=tuple(float(x) for x in content["high"]),
            mean=numbers("mean"),
            spread=numbers("spread"),
            words=tuple(tuple(map(str, words)) for words in content.get("words", ())),
            fill=numbers("fill"),
        )
