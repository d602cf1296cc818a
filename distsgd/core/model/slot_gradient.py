"""The gradient of one slot: a pure function of W and of the slot's examples.

The linear score function s = W x, in pieces of a fixed size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from distsgd.core.arrays import Bytes, Floats, Ints, padded
from distsgd.core.model.features import Preprocessing
from distsgd.core.model.losses import LOSSES

__all__ = ["SlotKernel", "SlotLoss", "block_columns", "block_rows", "fitting", "score"]


_SMALL_PRODUCT = 1_000_000
"""Multiplications up to which OpenBLAS uses its small-matrix kernels, which are twice as fast
for these thin shapes: 32 x 3088 by 3088 x 10 takes 21 us, 64 rows in one call 96 us."""


def block_rows(classes: int, columns: int) -> int:
    """Rows of a block of `score`: a power of two from 8 to 64 that stays a small product."""
    rows = 64
    while rows > 8 and rows * classes * columns > _SMALL_PRODUCT:
        rows //= 2
    return rows


def block_columns(rows: int, classes: int, columns: int) -> int:
    """Columns of a block of a gradient: a multiple of 16, in at most 64 nearly equal blocks."""
    small = max(1, _SMALL_PRODUCT // (rows * classes))
    blocks = min(64, -(-columns // small))
    while blocks < 64 and padded(-(-columns // blocks)) > small:
        blocks += 1
    return padded(-(-columns // blocks))


def score(weights: Floats, features: Floats, out: Floats) -> Floats:
    """s_i = W x_i for every row x_i of the features.

    The product is cut into blocks of rows whose size depends on the shape of W alone, so the
    scores of a slot have the same bits wherever and with whatever else they are computed.

    Args:
        weights: W, shape (classes, columns).
        features: shape (rows, columns), the bias column being 1.
        out: shape (rows, classes), overwritten and returned.

    Source: CS231n notes, "Linear classification": f(x, W) = W x with the bias trick.
    """
    step = block_rows(*weights.shape)
    for low in range(0, len(features), step):
        block = slice(low, low + step)
        np.matmul(features[block], weights.T, out=out[block])
    return out


_EXAMPLES = 256
"""How many examples are worth computing at once: what is done for many costs few calls, and
more than that would not stay in the cache."""


class SlotLoss(NamedTuple):
    """Loss and hits of some examples.

    Attributes:
        loss: sum of L_i, without regularisation.
        correct: examples whose largest score is that of their label.
        examples: how many examples.
    """

    loss: float
    correct: int
    examples: int


def fitting(slot_size: int, most: int | None) -> tuple[int, int]:
    """How many slots to compute at once, and the most examples that one of them has.

    Args:
        slot_size: examples of a slot.
        most: of all slots together; None if that is not known.
    """
    slots = max(1, _EXAMPLES // slot_size)
    if most is None:
        return slots, slot_size
    return min(slots, -(-most // slot_size)), min(slot_size, most)


class SlotKernel:
    """Slot gradients of the linear classifier, a few at once, in buffers that are made once.

    The features X are (R - c) / scale, with R the raw rows and c the centre (`Preprocessing`).
    So the scores are X W' = (R W' - c W') / scale. With G the gradients of the losses with
    respect to the scores (one row an example) and H = G / scale, the chain rule through s = W x
    gives dL/dW = G' X = H' R - h c', with h the sum of the rows of H: one product, to which c
    is a row more, of gradient -h. No pixel is ever centred or scaled.

    Products are a slot's own; the rest is done for each example by itself. So a slot's bits do
    not depend on the slots that are computed with it.

    Args:
        loss: "softmax" or "svm".
        classes: number of classes.
        preprocessing: from pixels to features.
        slot_size: examples of a slot, which fixes the bits.
        dtype: "float32" or "float64".
        most: the most examples of all slots together, if that is known: buffers are no larger.

    Attributes:
        slots: how many slots of full size may be computed at once.
    """

    def __init__(
        self,
        loss: str,
        classes: int,
        preprocessing: Preprocessing,
        slot_size: int,
        dtype: str,
        most: int | None = None,
    ) -> None:
        self._loss = LOSSES[loss]
        self._features = preprocessing.features
        self._shrink = np.dtype(dtype).type(1 / preprocessing.scale)
        self._centre = preprocessing.centre(dtype)
        self.slots, most = fitting(slot_size, most)
        rows = preprocessing.raw_buffer(self.slots * (most + 1), dtype)
        self._rows = rows.reshape(self.slots, most + 1, -1)
        self._rows[:, 0] = self._centre
        # Class by class, so that numpy goes over examples innermost.
        self._scores = np.empty((classes, self.slots * most), dtype=dtype)
        self._gradient = np.empty_like(self._scores)
        self._weighted = np.empty((classes, self.slots, most + 1), dtype=dtype)
        self._block = block_columns(slot_size + 1, classes, preprocessing.columns)

    def rows(self, slots: int, examples: int) -> Floats:
        """Where the raw rows of the next slots belong, shape (slots, examples, columns).

        Args:
            slots: how many; 1 if they are shorter than the others.
            examples: of each slot.
        """
        return self._rows[:slots, 1 : examples + 1]

    def gradient(self, weights: Floats, pixels: Bytes, labels: Ints, out: Floats) -> SlotLoss:
        """The gradient of one slot; see `gradients`.

        Args:
            weights: W, shape (classes, columns), or flat.
            pixels: shape (examples, features), uint8.
            labels: shape (examples,).
            out: of the shape of ``weights``, overwritten.
        """
        np.copyto(self.rows(1, len(labels))[0, :, : self._features], pixels)
        return self.gradients(weights, labels[None], out[None])[0]

    def gradients(self, weights: Floats, labels: Ints, out: Floats) -> list[SlotLoss]:
        """Write the sums over each slot's examples of dL_i/dW, and return the slots' losses.

        Args:
            weights: W, shape (classes, columns), or flat.
            labels: shape (slots, examples), of the examples whose raw rows are in `rows`.
            out: shape (slots, classes, columns), or flat but for the slots; overwritten.

        Source: CS231n notes, "Optimization", analytic gradient.
        """
        slots, examples = labels.shape
        weights = weights.reshape(len(self._scores), -1)
        out = out.reshape(slots, *weights.shape)
        truth = labels.reshape(-1)
        scores = self._score(weights, slots, examples)
        gradient = self._gradient[:, : len(truth)]
        losses = self._loss(scores.T, truth, gradient.T).reshape(labels.shape)
        weighted = self._weighted[:, :slots, : examples + 1]
        np.multiply(gradient.reshape(-1, slots, examples), self._shrink, out=weighted[:, :, 1:])
        np.negative(weighted[:, :, 1:].sum(axis=2), out=weighted[:, :, 0])
        for slot in range(slots):
            self._product(weighted[:, slot], self._rows[slot, : examples + 1], out[slot])
        hits = (scores.argmax(axis=0) == truth).reshape(labels.shape)
        return [
            SlotLoss(float(loss.sum(dtype=np.float64)), int(np.count_nonzero(hit)), examples)
            for loss, hit in zip(losses, hits, strict=True)
        ]

    def _score(self, weights: Floats, slots: int, examples: int) -> Floats:
        """The scores of what is in `rows`, shape (classes, slots * examples)."""
        scores: Floats = self._scores[:, : slots * examples]
        for slot, rows in enumerate(self.rows(slots, examples)):
            score(weights, rows, scores[:, slot * examples : (slot + 1) * examples].T)
        np.subtract(scores, (weights @ self._centre)[:, None], out=scores)
        np.multiply(scores, self._shrink, out=scores)
        return scores

    def _product(self, left: Floats, right: Floats, out: Floats) -> None:
        """The matrix product in blocks of columns."""
        for low in range(0, out.shape[1], self._block):
            block = slice(low, low + self._block)
            np.matmul(left, right[:, block], out=out[:, block])

    def products(self, weights: Floats, rows: int, out: Floats) -> None:
        """Only the two products of `gradients` for one slot, on what its buffers hold.

        For measuring how near they come to the peak of the machine.
        """
        score(weights, self.rows(1, rows)[0], self._scores[:, :rows].T)
        self._product(self._weighted[:, 0, : rows + 1], self._rows[0, : rows + 1], out)
