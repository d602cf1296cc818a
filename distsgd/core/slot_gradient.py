"""The gradient of one slot: a pure function of W and of the slot's examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from distsgd.core.arrays import Bytes, Floats, Ints
from distsgd.core.features import Preprocessing
from distsgd.core.losses import LOSSES
from distsgd.core.score import block_rows, score

__all__ = ["SlotKernel", "SlotLoss", "measure"]


@dataclass(frozen=True)
class SlotLoss:
    """Loss and hits of some examples.

    Attributes:
        loss: sum of L_i, without regularisation.
        correct: examples whose largest score is that of their label.
        examples: how many examples.
    """

    loss: float
    correct: int
    examples: int


class SlotKernel:
    """Computes slot gradients in buffers that are made once.

    Args:
        loss: "softmax" or "svm".
        classes: number of classes.
        preprocessing: from pixels to features.
        slot_size: the most examples a slot has.
        dtype: "float32" or "float64".
    """

    def __init__(
        self, loss: str, classes: int, preprocessing: Preprocessing, slot_size: int, dtype: str
    ) -> None:
        self._loss = LOSSES[loss]
        self._preprocessing = preprocessing
        self._features = preprocessing.buffer(slot_size, dtype)
        self._scores = np.empty((slot_size, classes), dtype=dtype)
        self._score_gradient = np.empty((slot_size, classes), dtype=dtype)
        self._block = self._column_block(classes, slot_size)

    def _column_block(self, classes: int, slot_size: int) -> int:
        """Columns of a gradient computed in one product, chosen like the rows of a score."""
        columns = self._preprocessing.columns
        blocks = 1
        while slot_size * classes * -(-columns // blocks) > 1_000_000 and blocks < 64:
            blocks *= 2
        return -(-columns // blocks)

    def gradient(self, weights: Floats, pixels: Bytes, labels: Ints, out: Floats) -> SlotLoss:
        """Write the sum over the slot's examples of dL_i/dW, and return their loss.

        dL/dW = G' X, with G the gradients with respect to the scores (one row an example) and
        X the features: the chain rule through s = W x.

        Args:
            weights: W, shape (classes, columns).
            pixels: shape (examples, features), uint8.
            labels: shape (examples,).
            out: shape (classes, columns), overwritten.

        Source: CS231n notes, "Optimization", analytic gradient.
        """
        rows = len(labels)
        features, scores = self._features[:rows], self._scores[:rows]
        by_score = self._score_gradient[:rows]
        self._preprocessing.fill(pixels, features)
        score(weights, features, scores)
        losses = self._loss(scores, labels, by_score)
        self._weight_gradient(by_score, features, out)
        correct = int(np.count_nonzero(scores.argmax(axis=1) == labels))
        return SlotLoss(float(losses.sum(dtype=np.float64)), correct, rows)

    def _weight_gradient(self, by_score: Floats, features: Floats, out: Floats) -> None:
        """out = G' X."""
        for low in range(0, features.shape[1], self._block):
            block = slice(low, low + self._block)
            np.matmul(by_score.T, features[:, block], out=out[:, block])

    def products(self, weights: Floats, rows: int, out: Floats) -> None:
        """Only the two products of `gradient`, X W' and G' X, on what its buffers hold.

        For measuring how near they come to the peak of the machine.
        """
        features = self._features[:rows]
        score(weights, features, self._scores[:rows])
        self._weight_gradient(self._score_gradient[:rows], features, out)


def measure(
    weights: Floats,
    loss: str,
    preprocessing: Preprocessing,
    batches: Iterable[tuple[Bytes, Ints]],
) -> tuple[SlotLoss, Ints]:
    """Loss and confusion matrix of W on batches of (pixels, labels).

    Returns:
        the loss over all batches, and counts of shape (classes, classes): entry [a, b] counts
        the examples of class a whose largest score is that of class b.
    """
    classes = len(weights)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    total, examples = 0.0, 0
    rows = block_rows(*weights.shape) * 4
    features = preprocessing.buffer(rows, weights.dtype.name)
    scores = np.empty((rows, classes), dtype=weights.dtype)
    for pixels, labels in batches:
        for low in range(0, len(labels), rows):
            part, truth = pixels[low : low + rows], labels[low : low + rows]
            preprocessing.fill(part, features[: len(part)])
            found = score(weights, features[: len(part)], scores[: len(part)])
            np.add.at(confusion, (truth.astype(np.intp), found.argmax(axis=1)), 1)
            total += float(LOSSES[loss](found, truth, np.empty_like(found)).sum(dtype=np.float64))
            examples += len(truth)
    return SlotLoss(total, int(np.trace(confusion)), examples), confusion
