"""Recipes: tested learning rates, regularization and first weights of each model and loss.

They are the defaults of the settings that depend on model, loss and optimizer: those of CIFAR-10,
and by `recipe_for_data` those of other data. There the learning rate follows from the curvature of
the loss, which for one layer is that of the features: the Hessian of the softmax at W = 0 has the
largest eigenvalue e / C, with C classes and e the largest eigenvalue of X'X / n, so that a rate of
C / e is half of the one that would diverge.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from distsgd.core.model import hidden_units

__all__ = [
    "BASE_BATCH",
    "COLUMNS",
    "IMAGES",
    "LEARNING_RATES",
    "PIXELS",
    "REGULARIZATION",
    "TWO_LAYER_LEARNING_RATES",
    "DataFacts",
    "Recipe",
    "recipe_for",
    "recipe_for_data",
]

IMAGES, PIXELS, COLUMNS = "images", "pixels", "columns"
"""Kinds of data: uint8 of three dimensions, uint8 of one, and columns of a table."""

LEARNING_RATES = {
    "softmax": {
        "sgd": 0.015, "momentum": 0.0015, "nesterov": 0.0015, "adagrad": 0.01, "adam": 0.001,
    },
    "svm": {
        "sgd": 0.001, "momentum": 0.0001, "nesterov": 0.0001, "adagrad": 0.003, "adam": 0.0003,
    },
}  # fmt: skip
"""The learning rate of the linear classifier, for each loss and update rule. With it, 10 epochs of
CIFAR-10 in minibatches of 256 with the cosine schedule give a test accuracy of 41.3 to 41.6 %
(softmax) and 39.9 to 40.1 % (SVM)."""

REGULARIZATION = {"softmax": 0.005, "svm": 0.02}
"""Lambda of each loss, for both models."""

TWO_LAYER_LEARNING_RATES = {
    "softmax": {
        "sgd": 0.05, "momentum": 0.005, "nesterov": 0.005, "adagrad": 0.02, "adam": 0.001,
    },
    "svm": {
        "sgd": 0.02, "momentum": 0.002, "nesterov": 0.002, "adagrad": 0.02, "adam": 0.001,
    },
}  # fmt: skip
"""The same for two layers. With 100 hidden units, 10 epochs give a test accuracy of 50.9 to 52.9 %
(softmax) and 51.1 to 52.0 % (SVM). Twice these rates are a little better for `sgd`, and three times
diverge."""

_INIT_SCALE, _TWO_LAYER_INIT_SCALE = 1e-4, 1.0

BASE_BATCH = 256
"""The minibatch that the learning rates are for; see `TrainConfig.scale_lr`."""


class Recipe(NamedTuple):
    """What settings are if they are not given.

    Attributes:
        learning_rate: of minibatches of `BASE_BATCH`.
        regularization: lambda.
        init_scale: see `distsgd.config.settings.TrainConfig.init_scale`.
    """

    learning_rate: float
    regularization: float
    init_scale: float


def recipe_for(model: str, loss: str, optimizer: str) -> Recipe:
    """The recipe of a model, a loss and an update rule.

    Raises:
        ValueError: there is no such model.
    """
    if hidden_units(model):
        rates, init_scale = TWO_LAYER_LEARNING_RATES, _TWO_LAYER_INIT_SCALE
    else:
        rates, init_scale = LEARNING_RATES, _INIT_SCALE
    return Recipe(rates[loss][optimizer], REGULARIZATION[loss], init_scale)


class DataFacts(NamedTuple):
    """What a recipe depends on of the data.

    Attributes:
        rows: that are trained on.
        features: of a row.
        classes: how many.
        kind: one of `IMAGES`, `PIXELS` and `COLUMNS`.
        lecture: whether it is CIFAR-10 or a part of it, whose defaults are those of all recipes.
        whole: whether rows are uint8, which are divided by the setting pixel_scale.
        energy: mean of the sum of squares of a row, centred and not yet scaled.
        curvature: largest eigenvalue of X'X / n of such rows.
    """

    rows: int
    features: int
    classes: int
    kind: str
    lecture: bool = False
    whole: bool = True
    energy: float = 0.0
    curvature: float = 0.0


_SMALLEST_BATCH, _STEPS_OF_FEW = 16, 32
"""Rows of a minibatch at least, and minibatches of an epoch of few rows at least."""

_STEPS, _TWO_LAYER_STEPS = 1500, 4000
_LEAST_EPOCHS, _TWO_LAYER_LEAST_EPOCHS, _MOST_EPOCHS = 10, 20, 300
"""Updates that a training makes at least, within these epochs."""

_SVM_RATE, _TWO_LAYER_RATE, _TWO_LAYER_CURVATURE = 0.3, 0.4, 6.0
_ADAM_RATE, _ADAGRAD_RATE, _MOMENTUM_RATE = 0.08, 0.6, 0.1
_LEAST_CURVATURE = 1e-12


def recipe_for_data(
    model: str, loss: str, optimizer: str, data: DataFacts, given: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The defaults that follow from the data, by the names of the settings; none for CIFAR-10.

    Args:
        model: the setting.
        loss: likewise.
        optimizer: likewise.
        data: what is trained on.
        given: settings that do not follow from the data, as a user gave them; the others suit them.
    """
    given = given or {}
    if data.lecture:
        return {}
    found: dict[str, Any] = {"batch_size": _batch_size(data.rows)}
    two = bool(hidden_units(model))
    batch = int(given.get("batch_size", found["batch_size"]))
    steps = _TWO_LAYER_STEPS if two else _STEPS
    epochs = -(-steps // max(1, -(-data.rows // batch)))
    least = _TWO_LAYER_LEAST_EPOCHS if two else _LEAST_EPOCHS
    found["epochs"] = min(max(epochs, least), _MOST_EPOCHS)
    scale = 1.0
    if data.whole:
        found["pixel_scale"] = _pixel_scale(data)
        scale = float(given.get("pixel_scale", found["pixel_scale"]))
    curvature = max(data.curvature / scale**2, _LEAST_CURVATURE)
    size = math.sqrt(max(data.energy, data.curvature) / scale**2 + _LEAST_CURVATURE)
    found["regularization"] = _rounded((1.0 if two or loss == "svm" else 0.5) / max(1, data.rows))
    found["learning_rate"] = _rounded(
        _rate(two, loss, optimizer, max(2, data.classes), curvature, size)
    )
    return {name: value for name, value in found.items() if name not in given}


def _batch_size(rows: int) -> int:
    """256; of few rows a power of two that makes several minibatches."""
    most = min(BASE_BATCH, max(_SMALLEST_BATCH, rows // _STEPS_OF_FEW))
    return min(max(1, rows), 1 << (most.bit_length() - 1))


def _pixel_scale(data: DataFacts) -> float:
    """The power of two nearest to the standard deviation of a pixel, from 1 to 256."""
    deviation = math.sqrt(data.energy / max(1, data.features))
    return float(2 ** round(math.log2(min(256.0, max(1.0, deviation)))))


def _rate(
    two: bool, loss: str, optimizer: str, classes: int, curvature: float, size: float
) -> float:
    """The learning rate; `size` is the root of the mean square norm of a row."""
    svm = loss == "svm"
    if optimizer in ("adam", "adagrad"):
        rate = _ADAM_RATE if optimizer == "adam" else _ADAGRAD_RATE
        return rate / size / (2 if svm else 1)
    if two:
        rate = min(_TWO_LAYER_RATE, _TWO_LAYER_CURVATURE * classes / curvature)
        rate /= math.sqrt(classes - 1) if svm else 1.0
    else:
        rate = classes / curvature
        rate *= _SVM_RATE / (classes - 1) if svm else 1.0
    return rate if optimizer == "sgd" else rate * _MOMENTUM_RATE


def _rounded(value: float) -> float:
    """Two digits, so that what a processor rounds otherwise does not matter."""
    return float(f"{value:.1e}")
