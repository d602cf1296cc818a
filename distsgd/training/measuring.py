"""Loss and accuracy of a model on a split of a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from distsgd.core.arrays import Ints
from distsgd.core.model.measure import measure
from distsgd.data.conversion import Conversion
from distsgd.data.dataset import Dataset
from distsgd.runs.checkpoint import Model

__all__ = ["Measured", "conversion_for", "measure_split"]


@dataclass(frozen=True, eq=False)
class Measured:
    """How good a model is.

    Attributes:
        loss: mean L_i plus the penalty.
        penalty: lambda * sum of W**2.
        accuracy: share of examples whose largest score is that of their label.
        confusion: shape (classes, classes): rows the true class, columns the one found.
    """

    loss: float
    penalty: float
    accuracy: float
    confusion: Ints


def conversion_for(model: Model, dataset: Dataset) -> Conversion:
    """From the examples of a dataset to those that a model takes.

    Raises:
        UsageError: they do not go together, see `Conversion`.
    """
    return Conversion(
        model.shape, model.classes, model.columns, dataset.manifest, dataset.folder
    )  # fmt: skip


def measure_split(model: Model, dataset: Dataset, split: str, regularization: float) -> Measured:
    """Measure a model on the "train" or "test" examples of a dataset.

    Raises:
        UsageError: the dataset does not go with the model, see `Conversion`.
    """
    conversion = conversion_for(model, dataset)
    examples = dataset.train if split == "train" else dataset.test
    weights = model.padded()
    batches = conversion.batches(examples.batches())
    found, confusion = measure(
        model.architecture, weights, model.loss, model.preprocessing, batches
    )
    extra = model.architecture.penalty(weights, regularization)
    count = max(1, found.examples)
    return Measured(found.loss / count + extra, extra, found.correct / count, confusion)
