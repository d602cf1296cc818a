"""What the default settings depend on of a dataset, measured on some of its training rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distsgd.config.recipes import COLUMNS, IMAGES, PIXELS, DataFacts
from distsgd.data.columns import FLOATS
from distsgd.data.dataset import Dataset

__all__ = ["facts_of"]

_ROWS, _ITERATIONS = 2048, 20

CIFAR_SHAPE, CIFAR_CLASSES = (3, 32, 32), ("airplane", "automobile")
"""Of CIFAR-10 and parts of it, such as the embedded sample."""


def facts_of(dataset: Dataset, trained: int) -> DataFacts:
    """The facts about a dataset; a pure function of it.

    Args:
        dataset: whose training rows are looked at: up to 2,048, evenly spaced; those of the first
            shard alone if shards are fetched one by one.
        trained: how many training rows there are, without those held out.

    Raises:
        CorruptDataError: a shard of the training set is not what the manifest says.
    """
    manifest = dataset.manifest
    kind = PIXELS if len(manifest.shape) == 1 else IMAGES
    if manifest.columns is not None:
        kind = COLUMNS
    lecture = manifest.shape == CIFAR_SHAPE and manifest.classes[:2] == CIFAR_CLASSES
    facts = DataFacts(trained, manifest.features, len(manifest.classes), kind, lecture)
    if lecture:
        return facts
    reach = manifest.train[0].rows if dataset.streamed else len(dataset.train)
    chosen = np.arange(min(_ROWS, reach), dtype=np.int64) * reach // max(1, min(_ROWS, reach))
    raw = np.empty((len(chosen), manifest.features), dataset.train.dtype)
    dataset.train.gather(chosen, raw)
    rows = raw.astype(np.float64) - dataset.preprocessing(1.0).mean
    energy = float(np.einsum("ij,ij->", rows, rows)) / max(1, len(rows))
    return facts._replace(
        energy=energy, curvature=largest_eigenvalue(rows), whole=manifest.values != FLOATS
    )


def largest_eigenvalue(rows: NDArray[np.float64]) -> float:
    """The largest eigenvalue of X'X / n, by power iterations from the row of the largest norm.

    Args:
        rows: X, shape (n, features).
    """
    if not rows.any():
        return 0.0
    found = rows[np.einsum("ij,ij->i", rows, rows).argmax()]
    value = 0.0
    for _ in range(_ITERATIONS):
        vector = found / np.linalg.norm(found)
        found = rows.T @ (rows @ vector) / len(rows)
        value = float(np.linalg.norm(found))
    return value
