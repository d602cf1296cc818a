"""A loaded model that classifies rows in memory, in microseconds a row, from any thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.core.model import Preprocessing, softmax_probabilities
from distsgd.data.text_files import some_of
from distsgd.engine.blas import one_blas_thread
from distsgd.errors import UsageError
from distsgd.runs import Model, weights_sha256

__all__ = ["Predictor"]

_BLOCK = 8
"""Rows of every product. A BLAS adds in an order that depends on the number of rows, and from about
16 rows on, with some kernels, on the place of a row among them; at 8 rows all places are alike
(OpenBLAS for Prescott, Sandybridge, Haswell, Zen and SkylakeX; `tests/training/test_predictor.py`).
"""

_IDLE = 8
"""Buffers that are kept for the next calls."""


class Predictor:
    """A classifier that does not change. Threads may share it, and it can be pickled.

    Rows are computed in blocks of 8, the last one filled up, so the bits of a row's scores do not
    depend on the rows beside it: one at a time or a million at once gives the same. (A BLAS may
    have a kernel where that fails; OpenBLAS has none that is known.)

    Args:
        model: the checkpoint.
        run: name of its run; "" if it has none.

    Attributes:
        run: name of the run.
        version: updates applied to W.
        classes: names of the classes, in the order of scores.
        shape: shape of an example: (channels, rows, columns) of an image, else (features,).
        columns: names of the columns of a row; empty if they have none.
    """

    def __init__(self, model: Model, run: str = "") -> None:
        self._model, self.run = model, run
        self.version, self.classes, self.shape = model.version, model.classes, model.shape
        self.columns = model.columns.names if model.columns else ()
        self._weights = model.padded()
        self._weights.flags.writeable = False
        self._architecture = model.architecture
        mean = model.preprocessing.mean.astype(self._weights.dtype)
        self._preprocessing = Preprocessing(mean, model.preprocessing.scale)
        self._names = np.array(model.classes)
        self._buffers: list[Floats] = []

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._model, self.run)

    def __repr__(self) -> str:
        of = f" of {self.run}" if self.run else ""
        return f"<predictor{of}: {self._model.model}, update {self.version}>"

    @property
    def features(self) -> int:
        """Numbers of a row as the model takes it."""
        return self._preprocessing.features

    @property
    def width(self) -> int:
        """Values of a row as they are given: columns, or pixels."""
        columns = self._model.columns
        return self.features if columns is None or len(columns.low) == 1 else len(columns.low)

    @property
    def words(self) -> tuple[tuple[str, ...], ...]:
        """The known words of each column, none for one of numbers; empty if all are of numbers."""
        return self._model.columns.words if self._model.columns else ()

    @property
    def fills(self) -> bool:
        """Whether a number may be missing: NaN, or None."""
        return bool(self._model.columns and self._model.columns.fill)

    @property
    def parameters(self) -> int:
        """Numbers of W."""
        return self._architecture.parameters

    @property
    def takes_images(self) -> bool:
        """Whether examples are images, not rows of columns."""
        return len(self.shape) == 3

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of W."""
        return weights_sha256(self._model.weights)

    def scores(self, given: Any) -> Floats:
        """The scores of each class, shape (rows, classes), in the dtype of W.

        Args:
            given: an array of shape (rows, `width`), or (`width`,) of one row, with values as they
                were imported: numbers and words of columns in their order, or pixels from 0 to 255,
                channel by channel. A table (pandas.DataFrame) with the model's columns, or a
                dictionary of them. An image of Pillow, or a list of them, of any size.

        Raises:
            UsageError: it has another shape, or holds something that cannot be classified.
        """
        return self.scores_of_rows(self.rows(given))

    def probabilities(self, given: Any) -> NDArray[np.float64]:
        """The softmax of `scores`, shape (rows, classes), float64.

        An SVM is not trained to give probabilities: there, they only order the classes.
        """
        return self.probabilities_of_rows(self.rows(given))

    def labels(self, given: Any) -> NDArray[np.str_]:
        """The name of the likeliest class of each row, shape (rows,); see `scores`."""
        found: NDArray[np.str_] = self._names[self.probabilities(given).argmax(axis=1)]
        return found

    def rows(self, given: Any) -> NDArray[Any]:
        """Rows as the model takes them, shape (rows, features): uint8, or its features in float32.

        Args, errors: see `scores`.
        """
        if (images := _images(given)) is not None:
            return self._rows_of_images(images)
        if isinstance(given, Mapping):
            given = self._of_columns(given)
        elif self.columns and set(self.columns) <= set(getattr(given, "columns", ())):
            given = given[list(self.columns)]
        values, width = np.asarray(given), self.width
        shapes = [(width,), *([self.shape] if len(self.shape) > 1 else [])]
        if values.shape in shapes:
            values = values.reshape(1, width)
        if values.shape[1:] not in shapes or not len(values):
            images_too = f"; examples are {self.shape}, and other images are given as files"
            raise UsageError(
                f"an array of shape {values.shape} cannot be classified",
                f"Give shape (rows, {width})" + (images_too if self.takes_images else ""),
            )
        values = values.reshape(len(values), width)
        if values.dtype == np.uint8 and self._model.columns is None:
            return values
        return self._rows_of_numbers(self._numbers(values))

    def _of_columns(self, given: Mapping[str, Any]) -> NDArray[Any]:
        """The columns of the model, side by side, shape (rows, columns)."""
        if not self.columns:
            raise UsageError("the model's columns have no names", "Give rows in their order")
        if missing := [name for name in self.columns if name not in given]:
            raise UsageError(
                f"there is no column {some_of(missing)}", f"The model takes {some_of(self.columns)}"
            )
        parts = [np.atleast_1d(np.asarray(given[name], dtype=object)) for name in self.columns]
        if any(part.shape != parts[0].shape or part.ndim > 1 for part in parts):
            raise UsageError("the columns are not of one length", "Give a value for each row")
        return np.stack(parts, axis=1)

    def _numbers(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Values as numbers, a word as its place among those of its column, NaN if missing."""
        columns = self._model.columns
        if columns is None or not self.words:
            return _numbers(values)
        found = np.empty(values.shape)
        for place, words in enumerate(self.words):
            column = values[:, place]
            if words:
                found[:, place] = columns.codes(place, [*map(_word, column.tolist())])
            else:
                found[:, place] = _numbers(column)
        return found

    def row_of_image(self, content: bytes, most_pixels: int) -> NDArray[Any]:
        """The row of an image file, shape (features,), uint8.

        Args:
            content: of the file.
            most_pixels: of the image; larger ones are refused before they are decoded.

        Raises:
            UsageError: it is no image, or too large, or the model takes none.
        """
        self._check_takes_images()
        from distsgd.data.importing.images import row_of_bytes  # not before a training: Pillow

        return row_of_bytes(content, self.shape, most_pixels)

    def _check_takes_images(self) -> None:
        if not self.takes_images:
            raise UsageError(
                "the model takes rows of numbers, not images", f"Give shape (rows, {self.width})"
            )

    def _rows_of_numbers(self, numbers: NDArray[np.float64]) -> NDArray[Any]:
        missing = np.isnan(numbers) if self.fills else np.False_
        if not (np.isfinite(numbers) | missing).all():
            raise UsageError("the array has entries that are not finite", "Remove those rows")
        if self._model.columns is not None:
            return self._model.columns.rows(numbers)
        if ((numbers < 0) | (numbers > 255) | (numbers % 1 != 0)).any():
            raise UsageError(
                "the array has numbers that are not pixels", "Give whole numbers from 0 to 255"
            )
        return numbers.astype(np.uint8)

    def _rows_of_images(self, images: list[Any]) -> NDArray[Any]:
        self._check_takes_images()
        from distsgd.data.importing.images import row_of  # not before a training: Pillow

        return np.stack([row_of(image, self.shape) for image in images])

    def scores_of_rows(self, rows: NDArray[Any]) -> Floats:
        """The scores of what `rows` returned, shape (rows, classes)."""
        preprocessing, weights = self._preprocessing, self._weights
        scores = np.empty((len(rows), len(self.classes)), weights.dtype)
        try:
            features = self._buffers.pop()
        except IndexError:
            features = preprocessing.buffer(_BLOCK, weights.dtype.name)
        last = np.empty((_BLOCK, len(self.classes)), weights.dtype)
        with one_blas_thread():
            for low in range(0, len(rows), _BLOCK):
                part = rows[low : low + _BLOCK]
                preprocessing.fill(part, features[: len(part)])
                if len(part) == _BLOCK:
                    self._architecture.score(weights, features, scores[low : low + _BLOCK])
                else:  # the rest of the buffer holds rows of earlier blocks
                    scores[low:] = self._architecture.score(weights, features, last)[: len(part)]
        if len(self._buffers) < _IDLE:
            self._buffers.append(features)
        return scores

    def probabilities_of_rows(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """The same as `probabilities` of what `rows` returned."""
        scores = self.scores_of_rows(rows).astype(np.float64)
        return softmax_probabilities(scores).astype(np.float64, copy=False)

    def likeliest(
        self, probabilities: NDArray[np.float64], top: int
    ) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
        """For each row of `probabilities`, the names of the likeliest classes, and how likely.

        Args:
            probabilities: shape (rows, classes).
            top: how many classes; fewer if there are no more.
        """
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        largest = np.take_along_axis(probabilities, order, axis=1)
        for places, shares in zip(order.tolist(), largest.tolist(), strict=True):
            yield tuple(self.classes[place] for place in places), tuple(shares)


def _images(given: Any) -> list[Any] | None:
    """One image of Pillow, or several, as a list; None for anything else."""
    found = list(given) if isinstance(given, list | tuple) else [given]
    return found if found and hasattr(found[0], "getbands") else None


def _word(value: Any) -> str:
    """A word as it was imported; that of a missing value is in no column."""
    return "" if value is None or value != value else str(value)


def _numbers(values: NDArray[Any]) -> NDArray[np.float64]:
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(
            f"an array of {values.dtype} cannot be classified", "Give numbers"
        ) from None
