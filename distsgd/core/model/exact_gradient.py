"""Slot gradients whose every product and sum over examples is exact; see `grids` for why.

The formulas are those of `slot_gradient`. As no sum depends on its order, blocks are as large as is
fastest.
"""

from __future__ import annotations

import math

import numpy as np

from distsgd.core.arrays import Floats, Ints, padded_columns
from distsgd.core.model.exact_losses import exact_loss, exact_sum
from distsgd.core.model.features import Preprocessing
from distsgd.core.model.grids import HIDDEN_RANGE, PART_BITS, SECOND_RANGE, Grids
from distsgd.core.model.slot_gradient import (
    Kernel,
    RowWriter,
    SlotLoss,
    block_columns,
    relu,
    relu_gradient,
    score,
)
from distsgd.core.portable import rounded

__all__ = [
    "ExactLinearKernel",
    "ExactTwoLayerKernel",
    "hidden_values",
    "second_parts",
    "second_scores",
]

_LARGEST_HIDDEN, _LARGEST_SECOND = 2.0**HIDDEN_RANGE, 2.0**SECOND_RANGE


def _two_parts(values: Floats, fraction: int) -> tuple[Floats, Floats]:
    """Values as U + V, with U the nearest multiples of 2**-fraction; both are exact."""
    upper = rounded(values, fraction)
    return upper, np.subtract(values, upper)


def second_parts(weights: Floats) -> tuple[Floats, Floats]:
    """W2 as U + V, each of `PART_BITS` bits."""
    return _two_parts(weights, PART_BITS - SECOND_RANGE)


def hidden_values(outputs: Floats, fraction: int) -> Floats:
    """h = max(0, a) as multiples of 2**-fraction, in place."""
    return rounded(relu(outputs), fraction, out=outputs)


def second_scores(parts: tuple[Floats, Floats], inputs: Floats) -> Floats:
    """W2 h with W2 = U + V: two exact products, and one rounding of their sum.

    Args:
        parts: U and V, shape (classes, inputs).
        inputs: h with the bias, shape (inputs, examples).
    """
    upper, lower = parts
    scores: Floats = np.matmul(upper, inputs)
    scores += np.matmul(lower, inputs)
    return scores


class _ExactKernel(Kernel):
    """What both have in common.

    Args:
        loss: "softmax" or "svm".
        grids: of the training.
        preprocessing: from pixels to features; its mean is whole.
        slot_size: examples of a full slot.
        outputs: of the first layer.
        most: the examples of all slots together; None if unknown.
    """

    def __init__(
        self,
        loss: str,
        grids: Grids,
        preprocessing: Preprocessing,
        slot_size: int,
        outputs: int,
        most: int | None,
    ) -> None:
        super().__init__(loss, preprocessing, slot_size, "float64", most)
        self._grids = grids
        self._own = exact_loss(loss, grids.score_gradient)
        self._size = np.empty((outputs, preprocessing.columns))
        self._scale = 1 / preprocessing.scale  # exact, of a power of two

    def _finished(self, parts: tuple[Floats, Floats], hits: Ints, *, fits: bool) -> list[SlotLoss]:
        """The loss of each slot, infinite if a product was not exact.

        Args:
            parts: what the loss has begun with, shape (slots, examples) each.
            hits: of each slot, how many largest scores are those of the labels.
            fits: whether all is in its bounds.
        """
        first, second = parts
        losses = self._own.end(first.reshape(-1), second.reshape(-1)).reshape(first.shape)
        return [
            SlotLoss(exact_sum(own) if fits else math.inf, hit, len(own))
            for own, hit in zip(losses, hits.tolist(), strict=True)
        ]


class ExactLinearKernel(_ExactKernel):
    """Slot gradients of s = W x; arguments as for `_ExactKernel`, the outputs being the classes."""

    def __init__(
        self,
        loss: str,
        grids: Grids,
        preprocessing: Preprocessing,
        slot_size: int,
        most: int | None = None,
    ) -> None:
        classes = grids.classes
        super().__init__(loss, grids, preprocessing, slot_size, classes, most)
        self._scores = np.empty((classes, self.slots * self._most))
        self._gradient = np.empty_like(self._scores)
        self._weighted = np.empty((classes, self.slots, self._most + 1))
        self._block = block_columns(slot_size + 1, classes, preprocessing.columns)

    def gradients(
        self, weights: Floats, labels: Ints, out: Floats, write: RowWriter
    ) -> list[SlotLoss]:
        """See `Kernel.gradients`."""
        weights = weights.reshape(len(self._scores), -1)
        out = out.reshape(len(labels), *weights.shape)
        fits = self._grids.first_layer_fits(weights, self._size)
        centre = (weights @ self._centre)[:, None]
        labels = labels.astype(np.intp)
        parts, best = np.empty((2, *labels.shape)), np.empty_like(labels)
        for low in range(0, len(labels), self.slots):
            part = slice(low, low + self.slots)
            write(low, self._rows[: len(labels[part]), 1 : labels.shape[1] + 1])
            best[part] = self._some(weights, centre, labels[part], out[part], parts[:, part])
        hits = np.count_nonzero(best == labels, axis=1)
        return self._finished((parts[0], parts[1]), hits, fits=fits)

    def _some(
        self, weights: Floats, centre: Floats, labels: Ints, out: Floats, parts: Floats
    ) -> Ints:
        """Gradients of the slots in the buffer; returns the classes with the largest scores."""
        slots, examples = labels.shape
        truth, rows = labels.reshape(-1), self._rows[:slots, : examples + 1]
        scores, gradient = self._scores[:, : len(truth)], self._gradient[:, : len(truth)]
        for slot, own in enumerate(rows):
            at = slot * examples
            score(weights, own[1:], scores[:, at : at + examples].T)
        np.subtract(scores, centre, out=scores)
        np.multiply(scores, self._scale, out=scores)
        for part, found in zip(parts, self._own.begin(scores.T, truth, gradient.T), strict=True):
            part[...] = found.reshape(labels.shape)
        weighted = self._weighted[:, :slots, : examples + 1]
        np.multiply(gradient.reshape(-1, slots, examples), self._scale, out=weighted[:, :, 1:])
        np.negative(weighted[:, :, 1:].sum(axis=2), out=weighted[:, :, 0])
        for slot, own in enumerate(rows):
            self._product(weighted[:, slot], own, out[slot])
        return np.asarray(scores.argmax(axis=0).reshape(labels.shape))

    def _product(self, left: Floats, right: Floats, out: Floats) -> None:
        """The matrix product in blocks of columns, which is faster."""
        for low in range(0, out.shape[1], self._block):
            block = slice(low, low + self._block)
            np.matmul(left, right[:, block], out=out[:, block])

    def products(self, weights: Floats, examples: int, out: Floats) -> None:
        """See `Kernel.products`."""
        weights, out = (flat.reshape(len(self._scores), -1) for flat in (weights, out))
        rows = self._rows[0, : examples + 1]
        score(weights, rows[1:], self._scores[:, :examples].T)
        self._product(self._weighted[:, 0, : examples + 1], rows, out)


class ExactTwoLayerKernel(_ExactKernel):
    """Slot gradients of h = max(0, W1 x), s = W2 h; arguments as for `_ExactKernel`."""

    def __init__(
        self,
        loss: str,
        grids: Grids,
        preprocessing: Preprocessing,
        slot_size: int,
        most: int | None = None,
    ) -> None:
        hidden = grids.hidden
        super().__init__(loss, grids, preprocessing, slot_size, hidden, most)
        self._units, self._classes = hidden, grids.classes
        self._hidden = np.zeros((padded_columns(hidden), self._most))
        self._hidden[hidden] = 1  # the bias
        self._active = np.empty((hidden, self._most), dtype=np.bool_)
        self._gradient = np.empty((grids.classes, self._most))
        self._weighted = np.empty((hidden, self._most + 1))

    def gradients(
        self, weights: Floats, labels: Ints, out: Floats, write: RowWriter
    ) -> list[SlotLoss]:
        """See `Kernel.gradients`."""
        first, second = self._layers(weights)
        fits = self._grids.first_layer_fits(first, self._size)
        fits = fits and bool(np.abs(second).max() <= _LARGEST_SECOND)
        parts = second_parts(second)
        centre = (first @ self._centre)[:, None]
        labels = labels.astype(np.intp)
        losses, best = np.empty((2, *labels.shape)), np.empty_like(labels)
        for low in range(0, len(labels), self.slots):
            slots = range(low, min(low + self.slots, len(labels)))
            write(low, self._rows[: len(slots), 1 : labels.shape[1] + 1])
            for place, slot in enumerate(slots):
                inputs = self._forward(first, centre, place, labels.shape[1])
                fits = fits and bool(inputs.max() <= _LARGEST_HIDDEN)
                scores = second_scores(parts, inputs)
                best[slot] = scores.argmax(axis=0)
                gradient = self._gradient[:, : labels.shape[1]]
                losses[:, slot] = self._own.begin(scores.T, labels[slot], gradient.T)
                self._gradients(parts, gradient, inputs, place, out[slot])
        hits = np.count_nonzero(best == labels, axis=1)
        return self._finished((losses[0], losses[1]), hits, fits=fits)

    def _gradients(
        self,
        second: tuple[Floats, Floats],
        gradient: Floats,
        inputs: Floats,
        place: int,
        out: Floats,
    ) -> None:
        """Gradients of the slot in one place of the buffer, from dL/ds."""
        examples = gradient.shape[1]
        first_out, second_out = self._layers(out)
        self._second_gradient(gradient, inputs, second_out)
        self._backward(second, gradient, examples)
        rows = self._rows[place, : examples + 1]
        np.matmul(self._weighted[:, : examples + 1], rows, out=first_out)

    def _forward(self, first: Floats, centre: Floats, slot: int, examples: int) -> Floats:
        """Hidden values with the bias, shape (columns, examples)."""
        inputs: Floats = self._hidden[:, :examples]
        hidden = inputs[: self._units]
        np.matmul(first, self._rows[slot, 1 : examples + 1].T, out=hidden)
        np.subtract(hidden, centre, out=hidden)
        np.multiply(hidden, self._scale, out=hidden)
        hidden_values(hidden, self._grids.hidden_value)
        return inputs

    def _second_gradient(self, gradient: Floats, inputs: Floats, out: Floats) -> None:
        """dL/dW2 = g h' with h in two parts."""
        grids = self._grids
        cut = grids.hidden_value - (HIDDEN_RANGE + grids.hidden_value) // 2
        upper, lower = _two_parts(inputs, cut)
        np.matmul(gradient, upper.T, out=out)
        out += np.matmul(gradient, lower.T)
        rounded(out, grids.second_gradient, out=out)

    def _backward(self, second: tuple[Floats, Floats], gradient: Floats, examples: int) -> None:
        """Fill `_weighted`, of which the gradient of the first layer is a product with rows."""
        units = self._units
        weighted = self._weighted[:, 1 : examples + 1]
        upper, lower = (part[:, :units].T for part in second)
        np.matmul(upper, gradient, out=weighted)
        weighted += np.matmul(lower, gradient)
        rounded(weighted, self._grids.hidden_gradient, out=weighted)
        relu_gradient(self._hidden[:units, :examples], weighted, self._active[:, :examples])
        np.multiply(weighted, self._scale, out=weighted)
        np.negative(weighted.sum(axis=1), out=self._weighted[:, 0])

    def _layers(self, flat: Floats) -> tuple[Floats, Floats]:
        """Views of the layers in flat parameters; see `Architecture.split`."""
        cut = self._units * len(self._centre)
        return flat[:cut].reshape(self._units, -1), flat[cut:].reshape(self._classes, -1)

    def products(self, weights: Floats, examples: int, out: Floats) -> None:
        """See `Kernel.products`."""
        first, second = self._layers(weights)
        first_out, second_out = self._layers(out)
        inputs, gradient = self._hidden[:, :examples], self._gradient[:, :examples]
        rows, weighted = self._rows[0, : examples + 1], self._weighted[:, 1 : examples + 1]
        np.matmul(first, rows[1:].T, out=inputs[: self._units])
        for _ in range(2):
            np.matmul(second, inputs)
            np.matmul(gradient, inputs.T, out=second_out)
            np.matmul(second[:, : self._units].T, gradient, out=weighted)
        np.matmul(self._weighted[:, : examples + 1], rows, out=first_out)
