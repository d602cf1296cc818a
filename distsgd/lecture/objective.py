"""The objective of the lecture in two matrix products, for experiments in float64.

The losses of many W at once: all their scores are one matrix product.

The training set is gone through in pieces of a fixed size, so that memory is bounded and the sums
have the same bits wherever they are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distsgd.core.arrays import Bytes, Floats, Ints
from distsgd.core.model import LOSSES
from distsgd.data.dataset import Dataset
from distsgd.data.split import Split
from distsgd.lecture.material import Examples

__all__ = [
    "LOSS_OF_SCORES",
    "Pieces",
    "accuracy_of",
    "gradient_of",
    "loss_and_gradient",
    "loss_of",
]


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
    """The examples of a split, a piece after the other, centred and in float32.

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
        """X, shape (examples, features + 1), and y; X lies in a buffer of its own."""
        low, high = number * PIECE, min((number + 1) * PIECE, self.limit)
        pixels: Bytes = np.empty((high - low, len(self.mean)), dtype=np.uint8)
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
