"""What the experiments share: examples, the objective over them, checks, and short trainings.

`Examples` are a float64 matrix in memory. `Pieces` visit a split in pieces of a fixed size, so
that memory is bounded and sums have the same bits in every process; there the losses of many W
are computed at once, as all their scores are one matrix product.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.core.arrays import Floats, Ints, Values
from distsgd.core.model import LOSSES
from distsgd.data.dataset import Dataset
from distsgd.data.split import Split
from distsgd.errors import UsageError
from distsgd.spelling import spelled, spelling
from distsgd.training.limits import check_memory
from distsgd.training.results import EpochRow, Reporter, TrainResult
from distsgd.training.training import train

__all__ = [
    "LOSS_OF_SCORES",
    "Examples",
    "Pieces",
    "Trained",
    "accuracy_of",
    "check_examples",
    "check_limit",
    "check_loss",
    "first_examples",
    "gradient_of",
    "loss_and_gradient",
    "loss_of",
    "train_for_study",
]


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples as the lecture writes them.

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


def check_limit(name: str, value: int, most: int, least: int = 1) -> int:
    """Return a number of examples, attempts or the like if it is in range.

    Args:
        name: of the argument.
        value: of the argument.
        most: the largest that is allowed.
        least: the smallest that is allowed.

    Raises:
        UsageError: it is out of range.
    """
    if not least <= value <= most:
        hint = f"Give a whole number from {least} to {most:,}"
        raise UsageError(f"{spelled(name)} cannot be {value}", hint)
    return value


def check_examples(rows: int, features: int, dtype: str = "float64") -> None:
    """Check that memory holds the examples: twice as features, once as pixels.

    Raises:
        UsageError: it does not; says how many fit.
    """
    needed = rows * (features + 1) * (2 * np.dtype(dtype).itemsize + 1)
    given = partial(spelling().given, "examples")
    check_memory(given(rows), needed, rows, given)


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
    rows = len(part) if limit is None else check_limit("examples", limit, len(part))
    check_examples(rows, dataset.manifest.features, dtype)
    pixels = np.empty((rows, dataset.manifest.features), dtype=part.dtype)
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
    """Check the name of a loss.

    Raises:
        UsageError: no loss has that name.
    """
    if loss not in LOSSES:
        raise UsageError(f"{spelled('loss')} cannot be {loss}", f"Give one of {', '.join(LOSSES)}")


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        result: of the run.
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
    """Train as `distsgd.train`, in a temporary run folder."""
    listener = _Listener()
    with tempfile.TemporaryDirectory(prefix="distsgd-study-") as folder:
        result = train(dataset, run_dir=Path(folder, "run"), reporter=listener, **settings)
    return Trained(result, tuple(listener.rows))


def loss_and_gradient(
    weights: Floats, features: Floats, labels: Ints, loss: str
) -> tuple[float, Floats]:
    """L = 1/n sum_i L_i(W x_i, y_i), and dL/dW = 1/n sum_i (dL_i/ds) x_i'.

    Args:
        weights: W, shape (classes, columns).
        features: X, shape (n, columns).
        labels: y, shape (n,).
        loss: "softmax" or "svm".

    Returns:
        L, and dL/dW of shape (classes, columns), in the type of W.

    Source: CS231n notes, "Optimization", computing the gradient analytically.
    """
    scores = features @ weights.T
    by_score = np.empty_like(scores)
    losses = LOSSES[loss](scores, labels, by_score)
    return float(losses.mean()), by_score.T @ features / len(labels)


def loss_of(weights: Floats, examples: Examples, loss: str) -> float:
    """L over all of the examples."""
    scores = examples.features @ weights.T
    return float(LOSSES[loss](scores, examples.labels, np.empty_like(scores)).mean())


def gradient_of(weights: Floats, examples: Examples, loss: str) -> Floats:
    """dL/dW over all of the examples, shape (classes, columns)."""
    return loss_and_gradient(weights, examples.features, examples.labels, loss)[1]


PIECE = 1_000
"""Examples of a piece."""


def svm_losses(scores: Floats, labels: Ints) -> Floats:
    """L_i = sum over j != y of max(0, s_j - s_y + 1), for every W.

    Args:
        scores: shape (examples, attempts, classes); overwritten.
        labels: shape (examples,).

    Returns:
        shape (examples, attempts).
    """
    scores -= scores[np.arange(len(labels)), :, labels][:, :, None] - 1
    np.maximum(scores, 0, out=scores)
    losses: Floats = scores.sum(axis=2) - 1  # that of the correct class is 1
    return losses


def softmax_losses(scores: Floats, labels: Ints) -> Floats:
    """L_i = -s_y + log sum_j exp(s_j), for every W; as `svm_losses` otherwise."""
    scores -= scores.max(axis=2, keepdims=True)
    right = scores[np.arange(len(labels)), :, labels]
    losses: Floats = np.log(np.exp(scores, out=scores).sum(axis=2)) - right
    return losses


LOSS_OF_SCORES = {"svm": svm_losses, "softmax": softmax_losses}


@dataclass(frozen=True, eq=False)
class Pieces:
    """The examples of a split in pieces, centred, float32.

    Attributes:
        split: where they come from.
        mean: what is subtracted from pixels, shape (features,).
        limit: how many examples.
    """

    split: Split
    mean: Floats
    limit: int

    @classmethod
    def of(cls, dataset: Dataset, split: str, limit: int | None = None) -> Pieces:
        """The first examples of "train" or "test"; all of them if ``limit`` is None."""
        part = dataset.train if split == "train" else dataset.test
        mean = dataset.pixel_mean.astype(np.float32)
        return cls(part, mean, len(part) if limit is None else min(limit, len(part)))

    def __len__(self) -> int:
        return -(-self.limit // PIECE)

    def piece(self, number: int) -> tuple[Floats, Ints]:
        """X, shape (examples, features + 1), in a new buffer; and y, shape (examples,)."""
        low, high = number * PIECE, min((number + 1) * PIECE, self.limit)
        pixels: Values = np.empty((high - low, len(self.mean)), dtype=self.split.dtype)
        self.split.gather(np.arange(low, high), pixels)
        features = np.ones((high - low, len(self.mean) + 1), dtype=np.float32)
        np.subtract(pixels, self.mean, out=features[:, :-1])
        return features, self.split.labels[low:high].astype(np.intp)

    def all(self) -> Iterator[tuple[Floats, Ints]]:
        """All pieces in order."""
        return map(self.piece, range(len(self)))

    def losses(self, weights: Floats, loss: str) -> Floats:
        """Mean L of each W over all examples, shape (attempts,), float64.

        Args:
            weights: shape (attempts, classes, features + 1), float32.
            loss: "svm" or "softmax".
        """
        stack = weights.reshape(-1, weights.shape[2]).T
        total = np.zeros(len(weights))
        for features, labels in self.all():
            scores = (features @ stack).reshape(len(labels), len(weights), -1)
            total += LOSS_OF_SCORES[loss](scores, labels).sum(axis=0, dtype=np.float64)
        return total / self.limit

    def scores(self, weights: Floats) -> Floats:
        """s = W x of every example for each W, shape (examples, attempts, classes)."""
        stack = weights.reshape(-1, weights.shape[2]).T
        parts = [features @ stack for features, _ in self.all()]
        return np.concatenate(parts).reshape(self.limit, len(weights), -1)


def accuracy_of(weights: Floats, pieces: Pieces) -> float:
    """Share of the examples whose largest score is that of their label."""
    hits = 0
    for features, labels in pieces.all():
        hits += int(np.count_nonzero((features @ weights.T).argmax(axis=1) == labels))
    return hits / pieces.limit
