"""Loss and accuracy of a model on a split of a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from distsgd.core.arrays import Ints
from distsgd.core.measure import measure
from distsgd.data.dataset import Dataset
from distsgd.errors import UsageError
from distsgd.run.checkpoint import Model

__all__ = ["Measured", "measure_split"]


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


def measure_split(model: Model, dataset: Dataset, split: str, regularization: float) -> Measured:
    """Measure a model on the "train" or "test" examples of a dataset.

    Raises:
        UsageError: the dataset has other classes or images of another shape.
    """
    manifest = dataset.manifest
    if (manifest.shape, manifest.classes) != (model.shape, model.classes):
        raise UsageError(
            f"the run was trained on images {model.shape} of {len(model.classes)} classes, "
            f"{dataset.folder} has {manifest.shape} of {len(manifest.classes)}",
            "Give the --dataset that the run was trained on",
        )
    examples = dataset.train if split == "train" else dataset.test
    weights = model.padded()
    found, confusion = measure(
        model.architecture, weights, model.loss, model.preprocessing, examples.batches()
    )
    extra = model.architecture.penalty(weights, regularization)
    count = max(1, found.examples)
    return Measured(found.loss / count + extra, extra, found.correct / count, confusion)
