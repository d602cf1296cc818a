"""A model as the matrices, biases and preprocessing that other programs compute with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distsgd.core.arrays import Floats
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
        columns: names of the columns, for data that are no images; may be empty.
        low: for such data, the number that becomes pixel 0, shape (features,); None for images.
        factor: for such data, pixels a unit: 255 / (high - low), and 0 for a constant column.
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
        return found


def exported(model: Model) -> ExportedModel:
    """What a checkpoint holds, as other programs compute with it."""
    dtype, features = model.weights.dtype, model.preprocessing.features
    parts = model.architecture.split_kept(model.weights)
    low = factor = None
    if model.columns is not None:
        low, high = (
            np.broadcast_to(np.array(bound, np.float64), (features,))
            for bound in (model.columns.low, model.columns.high)
        )
        width = high - low
        factor = np.divide(255.0, width, out=np.zeros(features), where=width > _NO_WIDTH)
    return ExportedModel(
        weights=[np.ascontiguousarray(part[:, :-1]) for part in parts],
        biases=[np.ascontiguousarray(part[:, -1]) for part in parts],
        mean=model.preprocessing.mean.astype(dtype),
        scale=model.preprocessing.scale,
        classes=model.classes,
        shape=model.shape,
        loss=model.loss,
        version=model.version,
        columns=model.columns.names if model.columns else (),
        low=low,
        factor=factor,
    )
