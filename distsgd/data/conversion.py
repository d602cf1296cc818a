"""Convert the examples of one dataset for a model that was trained on another.

In a dataset of columns, a feature is a number that was standardised, or put on a step, with the
statistics of this dataset. In another dataset the same number is another feature, a column may have
another place, a word another feature, and a class another label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Bytes, Ints, Values
from distsgd.data.columns import PIXELS, Columns
from distsgd.data.manifest import Manifest
from distsgd.data.text_files import normal, some_of
from distsgd.errors import UsageError
from distsgd.spelling import spelling

__all__ = ["Conversion"]

_PIXELS = Columns(names=(), low=(0.0,), high=(255.0,))
"""The scale of pixels that are kept as they are."""

_LEAST_STEPS = 8
"""Least number of steps of a dataset in the range of a model's column."""

_AT_ONCE = 1 << 20


class Conversion:
    """Converts the rows and labels of a dataset to those of a model.

    Columns are matched by name if both have names, and else by order; classes and words are matched
    by name. Rows become numbers again, and then features as the model's columns make them. What the
    dataset has clipped, or put on one step, stays so.

    Args:
        shape: shape of the model's examples.
        classes: names of the model's classes.
        scale: how numbers became the model's pixels; None if they were pixels.
        manifest: manifest of the dataset.
        where: the dataset, for errors.

    Attributes:
        classes: number of the model's classes.

    Raises:
        UsageError: the dataset lacks columns, has examples of another shape or other classes, or
            its steps are too coarse for the model's scale.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: Sequence[str],
        scale: Columns | None,
        manifest: Manifest,
        where: object,
    ) -> None:
        self._where = where
        self.classes = len(classes)
        self._columns = self._matched(shape, scale, manifest)
        self._model, self._data = scale or _PIXELS, manifest.columns or _PIXELS
        self._same = self._columns is None and self._model == self._data
        plain = all(one.values == PIXELS and not one.words for one in (self._model, self._data))
        self._steps = self._converted(self._model, self._data) if plain else None
        self._by_numbers = not (plain or self._same)
        self._words = self._matched_words() if self._by_numbers else {}
        self._labels = self._matched_classes(classes, manifest.classes)

    def batches(self, batches: Iterable[tuple[Values, Ints]]) -> Iterator[tuple[Values, Ints]]:
        """Convert batches of (rows, labels), shapes (rows, features) and (rows,)."""
        for rows, labels in batches:
            yield self.rows(rows), self.labels(labels)

    def rows(self, rows: Values) -> Values:
        """The model's rows, shape (rows, model's features), from a dataset's."""
        if self._by_numbers:
            some = max(1, _AT_ONCE // rows.shape[1])
            parts = [self._anew(rows[low : low + some]) for low in range(0, len(rows), some)]
            return np.concatenate(parts) if parts else self._anew(rows)
        if self._columns is None and self._steps is None:
            return rows
        return self._restepped(rows)

    def _anew(self, rows: Values) -> Values:
        """The model's rows from the numbers of a dataset's."""
        numbers = self._data.numbers(rows)
        if self._columns is not None:
            numbers = numbers[:, self._columns]
        for column, places in self._words.items():
            numbers[:, column] = places[numbers[:, column].astype(np.intp)]
        return self._model.rows(numbers)

    def _matched_words(self) -> dict[int, NDArray[np.float64]]:
        """Column of the model -> the place there of each word of the dataset, and -1 for none."""
        own = self._data.words or ((),) * len(self._data.low)
        if self._columns is not None:
            own = tuple(own[column] for column in self._columns)
        found = {}
        for column, words in enumerate(self._model.words):
            there = own[column] if column < len(own) else ()
            if bool(words) != bool(there):
                name = self._model.names[column] if self._model.names else str(column + 1)
                raise UsageError(
                    f"column '{name}' holds {'words' if words else 'numbers'} in the run, and "
                    f"{'words' if there else 'numbers'} in {self._where}",
                    "Import it with the same columns as categories",
                )
            if words:
                found[column] = np.append(self._model.codes(column, list(there)), -1.0)
        return found

    def _restepped(self, pixels: Bytes) -> Bytes:
        """Steps of the model's columns from steps of the dataset's."""
        features = pixels.shape[1] if self._columns is None else len(self._columns)
        out = np.empty((len(pixels), features), dtype=np.uint8)
        rows = max(1, _AT_ONCE // features)
        for low in range(0, len(pixels), rows):
            part = pixels[low : low + rows]
            if self._columns is not None:
                part = part[:, self._columns]
            if self._steps is not None:
                of_column = np.arange(len(self._steps)) if len(self._steps) > 1 else 0
                part = self._steps[of_column, part]
            out[low : low + rows] = part
        return out

    def labels(self, labels: Ints) -> Ints:
        """The model's labels, shape (rows,), from a dataset's."""
        return labels if self._labels is None else self._labels[labels]

    def _matched(
        self, shape: tuple[int, ...], scale: Columns | None, manifest: Manifest
    ) -> NDArray[np.intp] | None:
        """The places of the model's columns in the dataset; None if they are the same."""
        wanted = [normal(name) for name in scale.names] if scale else []
        there = [normal(name) for name in manifest.columns.names] if manifest.columns else []
        if not wanted or not there:
            if shape != manifest.shape:
                raise UsageError(
                    f"the run was trained on examples of shape {_product(shape)}, but those of "
                    f"{self._where} are {_product(manifest.shape)}",
                    f"Give a {spelling().setting('dataset')} of the same shape",
                )
            return None
        if missing := [name for name in wanted if name not in there]:
            raise UsageError(
                f"{self._where} has no column {some_of(missing)}, which the run was trained on",
                f"Its columns: {some_of(there)}",
            )
        if wanted == there:
            return None
        return np.array([there.index(name) for name in wanted])

    def _converted(self, model: Columns, data: Columns) -> Bytes | None:
        """The model's step for each step, shape (1 or features, 256); None if they are equal."""
        low, high = np.array(data.low), np.array(data.high)
        if self._columns is not None and data.features > 1:
            low, high = low[self._columns], high[self._columns]
        if np.array_equal(low, model.low) and np.array_equal(high, model.high):
            return None
        low, high, model_low, model_high = np.broadcast_arrays(low, high, model.low, model.high)
        self._refuse_coarse(model, low, high, model_high - model_low)
        numbers = low + np.arange(256)[:, None] * ((high - low) / 255)
        both = Columns(
            names=(), low=tuple(model_low.tolist()), high=tuple(model_high.tolist())
        )  # fmt: skip
        return np.ascontiguousarray(both.rows(numbers).T)

    def _refuse_coarse(
        self,
        model: Columns,
        low: NDArray[np.float64],
        high: NDArray[np.float64],
        range_of_model: NDArray[np.float64],
    ) -> None:
        step = (high - low) / 255
        whole = (low == 0) & (high <= 255) & (high % 1 == 0)  # a step for each number
        coarse = (step * _LEAST_STEPS > range_of_model) & (range_of_model > 0) & ~whole
        if coarse.any():
            at = int(np.argmax(coarse))
            name = f"column '{model.names[at]}'" if model.names else f"column {at + 1}"
            raise UsageError(
                f"{self._where} is too coarse for the run: a step of its {name} is "
                f"{step[at]:.3g}, and the whole range of the run's is {range_of_model[at]:.3g}",
                "Give `distsgd predict` the file that it was imported from, or import it without "
                "its outliers",
            )

    def _matched_classes(self, classes: Sequence[str], there: Sequence[str]) -> Ints | None:
        """The model's label of each class of the dataset; None if they are equal."""
        wanted = [normal(name) for name in classes]
        found = [normal(name) for name in there]
        if missing := [name for name in found if name not in wanted]:
            raise UsageError(
                f"{self._where} has classes that the run was not trained on: {some_of(missing)}",
                f"The run's classes: {some_of(wanted)}",
            )
        if wanted == found:
            return None
        return np.array([wanted.index(name) for name in found], dtype=np.intp)


def _product(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
