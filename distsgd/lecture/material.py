"""The examples that the lecture's experiments look at: plain matrices of features.

Refusals that several experiments share.

Runs of the service that an experiment makes and looks at, and that leave nothing behind.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model import LOSSES
from distsgd.data.dataset import Dataset
from distsgd.errors import UsageError
from distsgd.training.limits import check_memory
from distsgd.training.results import EpochRow, Reporter, TrainResult
from distsgd.training.training import train

__all__ = [
    "Examples",
    "Trained",
    "check_examples",
    "check_limit",
    "check_loss",
    "first_examples",
    "train_for_study",
]


@dataclass(frozen=True, eq=False)
class Examples:
    """Some examples as the lecture writes them.

    Attributes:
        features: X, shape (examples, features + 1); the last column is 1 (bias trick).
        labels: y, shape (examples,), integers.
        classes: number of classes.
    """

    features: Floats
    labels: Ints
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of W, (classes, features + 1)."""
        return self.classes, self.features.shape[1]


def check_limit(flag: str, value: int, most: int, least: int = 1) -> int:
    """See that a number of examples, attempts or the like can be used.

    Raises:
        UsageError: it is not from ``least`` to ``most``; names the flag.
    """
    if not least <= value <= most:
        raise UsageError(
            f"{flag} cannot be {value}", f"Give a whole number from {least} to {most:,}"
        )
    return value


def check_examples(rows: int, features: int, dtype: str = "float64") -> None:
    """See that memory holds so many examples as features, once more on the way, and as pixels.

    Raises:
        UsageError: it does not; says how many fit.
    """
    needed = rows * (features + 1) * (2 * np.dtype(dtype).itemsize + 1)
    check_memory(f"--examples {rows}", needed, rows, lambda fits: f"--examples {fits}")


def first_examples(
    dataset: Dataset,
    split: str = "train",
    limit: int | None = None,
    *,
    centred: bool = True,
    scale: float = 1.0,
    dtype: str = "float64",
) -> Examples:
    """The first examples of a split, in order.

    Args:
        dataset: where they come from.
        split: "train" or "test".
        limit: how many; None for all.
        centred: subtract the mean of each pixel over the training set.
        scale: what pixels are divided by; 1 leaves them as in the lecture.
        dtype: of the features.

    Raises:
        UsageError: the split has fewer than ``limit`` examples, or memory does not hold them.
    """
    part = dataset.train if split == "train" else dataset.test
    rows = len(part) if limit is None else check_limit("--examples", limit, len(part))
    check_examples(rows, dataset.manifest.features, dtype)
    pixels = np.empty((rows, dataset.manifest.features), dtype=np.uint8)
    part.gather(np.arange(rows), pixels)
    features = np.ones((rows, dataset.manifest.features + 1), dtype=dtype)
    inner = features[:, :-1]
    inner[...] = pixels
    if centred:
        inner -= dataset.pixel_mean.astype(dtype)
    inner /= scale
    labels = part.labels[:rows].astype(np.int64)
    return Examples(features, labels, len(dataset.manifest.classes))


def check_loss(loss: str) -> None:
    """See that there is such a loss.

    Raises:
        UsageError: there is none.
    """
    if loss not in LOSSES:
        raise UsageError(f"--loss cannot be {loss}", f"Give one of {', '.join(LOSSES)}")


@dataclass(frozen=True)
class Trained:
    """What an experiment keeps of a run.

    Attributes:
        result: at the end.
        epochs: one row for each epoch.
    """

    result: TrainResult
    epochs: tuple[EpochRow, ...]


class _Listener(Reporter):
    def __init__(self) -> None:
        self.rows: list[EpochRow] = []

    def epoch(self, row: EpochRow) -> None:
        self.rows.append(row)


def train_for_study(dataset: str | Path, **settings: Any) -> Trained:
    """Train as `distsgd.train` does, in a folder that is removed afterwards."""
    listener = _Listener()
    with tempfile.TemporaryDirectory(prefix="distsgd-study-") as folder:
        result = train(dataset, run_dir=Path(folder, "run"), reporter=listener, **settings)
    return Trained(result, tuple(listener.rows))
