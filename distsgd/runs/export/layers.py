"""A model as the matrices, biases and preprocessing that other programs compute with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.data.columns import PIXELS, Columns
from distsgd.runs.checkpoint import Model

__all__ = ["ExportedModel", "exported"]

_NO_WIDTH = 1e-200
"""As in `Columns`: a column with a smaller range is constant."""


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """A model whose inputs are raw: pixels, or the numbers of columns as they were imported.

    Scores are those of the layers one after the other, ``h = weights @ x + bias``, with max(0, h)
    between two of them, and x = (pixels - mean) / scale.

    Attributes:
        weights: of each layer, shape (outputs, inputs).
        biases: of each layer, shape (outputs,).
        mean: shape (features,), the dtype of the weights.
        scale: what centred pixels are divided by.
        classes: names of the classes.
        shape: of an example.
        loss: "softmax" or "svm".
        version: updates applied.
        columns: names of the columns, for data that are no images; may be empty. A column of words
            is one for each word, with numbers 0 and 1.
        low: for such data, the number that becomes 0, shape (features,); None for images.
        factor: for such data, what a unit becomes: 255 / (high - low) steps, and 0 for a constant
            column; or 1 / standard deviation.
        bounds: of standardised columns, the least and the greatest number, to which others are
            clipped, shape (2, features); None for steps, which are clipped to 0 ... 255 and
            rounded.
    """

    weights: list[Floats]
    biases: list[Floats]
    mean: Floats
    scale: float
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    loss: str
    version: int
    columns: tuple[str, ...] = ()
    low: Floats | None = None
    factor: Floats | None = None
    bounds: Floats | None = None

    @property
    def features(self) -> int:
        """Number of pixels or columns."""
        return len(self.mean)

    def arrays(self) -> dict[str, Any]:
        """Everything as arrays by name, for `numpy.savez`: W and b, with W2 and b2 if there are."""
        found: dict[str, Any] = {}
        for number, (weights, bias) in enumerate(zip(self.weights, self.biases, strict=True), 1):
            suffix = "" if number == 1 else str(number)
            found[f"W{suffix}"], found[f"b{suffix}"] = weights, bias
        found.update(
            mean=self.mean, scale=np.array(self.scale), classes=np.array(self.classes),
            shape=np.array(self.shape), updates=np.array(self.version),
        )  # fmt: skip
        if self.low is not None:
            found.update(low=self.low, factor=self.factor)
            found["columns"] = np.array(self.columns)
        if self.bounds is not None:
            found["bounds"] = self.bounds
        return found


def exported(model: Model) -> ExportedModel:
    """What a checkpoint holds, as other programs compute with it."""
    dtype, features = model.weights.dtype, model.preprocessing.features
    parts = model.architecture.split_kept(model.weights)
    low = factor = bounds = None
    if model.columns is not None:
        bounds = _bounds(model.columns, features)
        low, high = bounds
        width = high - low
        factor = np.divide(255.0, width, out=np.zeros(features), where=width > _NO_WIDTH)
    if model.columns is None or model.columns.values == PIXELS:
        bounds = None
    else:
        low = _each(model.columns, model.columns.mean, 0.0)
        factor = 1 / _each(model.columns, model.columns.spread, 1.0)
    return ExportedModel(
        weights=[np.ascontiguousarray(part[:, :-1]) for part in parts],
        biases=[np.ascontiguousarray(part[:, -1]) for part in parts],
        mean=model.preprocessing.mean.astype(dtype),
        scale=model.preprocessing.scale,
        classes=model.classes,
        shape=model.shape,
        loss=model.loss,
        version=model.version,
        columns=model.columns.feature_names if model.columns else (),
        low=low,
        factor=factor,
        bounds=bounds,
    )


def _each(columns: Columns, numbers: Sequence[float], of_words: float) -> Floats:
    """A number of each feature, given those of the columns, and one for the features of words."""
    words = columns.words or ((),) * len(numbers)
    parts = [
        [of_words] * len(own) if own else [number]
        for own, number in zip(words, numbers, strict=True)
    ]
    return np.array([number for part in parts for number in part])


def _bounds(columns: Columns, features: int) -> Floats:
    """The least and the greatest number of each feature, shape (2, features)."""
    low, high = _each(columns, columns.low, 0.0), _each(columns, columns.high, 1.0)
    return np.stack([np.broadcast_to(bound, (features,)) for bound in (low, high)])
