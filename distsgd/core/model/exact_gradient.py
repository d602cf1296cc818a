"""Slot gradients whose every product and sum over examples is exact; see `grids` for why.

The formulas are those of `slot_gradient`. As no sum depends on its order, examples are taken
together whatever their slots, and the gradients of slots that are to be added up are one product:

- forward, block after block of rows, for all examples;
- the loss, and what is elementwise, for all examples at once;
- backward, block after block of columns, each of all the rows to be added up.

So pixels are converted to floats twice, each time into a block that stays in the cache, which takes
less time than to read them again from a memory further away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats, Ints, padded_columns
from distsgd.core.model.exact_losses import exact_loss, exact_sum
from distsgd.core.model.grids import HIDDEN_RANGE, PART_BITS, SECOND_RANGE, Grids
from distsgd.core.model.slot_gradient import (
    Kernel,
    KernelSettings,
    RowWriter,
    SlotLoss,
    relu,
    relu_gradient,
    score,
    two_layers,
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

_ROWS, _ROWS_OF_TWO = 32, 64
"""Rows of a block: 32 of 3088 floats are 0.8 MB. More where they are multiplied by many units."""

_BLOCK, _NARROWEST = 66_048, 64
"""Floats of a block of columns, such as 257 rows of 256, and columns of one at least."""


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


Ranges = Sequence[tuple[int, int]]
"""Slots [first, last), one range after another."""


class _ExactKernel(Kernel):
    """What both have in common.

    Args:
        settings: what it is made for; the mean of the preprocessing is whole.
        grids: of the training.
        outputs: of the first layer.
        rows: of a block.
    """

    adds_slots = True

    def __init__(self, settings: KernelSettings, grids: Grids, outputs: int, rows: int) -> None:
        super().__init__(settings)
        preprocessing = settings.preprocessing
        self._grids, self._outputs = grids, outputs
        self._own = exact_loss(settings.loss, grids.score_gradient)
        self._size = np.empty((outputs, preprocessing.columns))
        self._scale = 1 / preprocessing.scale  # exact, of a power of two
        self._rows = preprocessing.raw_buffer(rows, "float64")
        self._columns = np.empty(_BLOCK)
        self._arrays: dict[tuple[str, int], Floats] = {}

    def gradients(
        self,
        weights: Floats,
        labels: Ints,
        out: Floats,
        write: RowWriter,
        factors: Floats | None = None,
    ) -> list[SlotLoss]:
        """See `Kernel.gradients`."""
        ranges = [(slot, slot + 1) for slot in range(len(labels))]
        return self.sums(weights, labels, out, write, ranges, factors)

    def _array(self, name: str, rows: int, columns: int) -> Floats:
        """An array that is made once for each number of columns."""
        found = self._arrays.get((name, columns))
        if found is None:
            found = self._arrays[name, columns] = np.empty((rows, columns))
        return found

    def _forward(self, weights: Floats, shape: tuple[int, ...], write: RowWriter) -> Floats:
        """Outputs of the first layer, shape (outputs, slots * examples).

        Args:
            weights: of the first layer, shape (outputs, columns).
            shape: (slots, examples).
            write: writes raw rows.
        """
        slots, examples = shape
        outputs = self._array("outputs", self._outputs, slots * examples)
        together = max(1, len(self._rows) // examples)  # short slots
        step = min(examples, len(self._rows))
        for first in range(0, slots, together):
            count = min(together, slots - first)
            for low in range(0, examples, step):
                length = min(step, examples - low)
                rows = self._rows[: count * length]
                write(first, rows.reshape(count, length, -1), low)
                at = first * examples + low
                self._multiply(weights, rows, outputs[:, at : at + len(rows)])
        np.subtract(outputs, np.matmul(weights, self._centre)[:, None], out=outputs)
        return np.multiply(outputs, self._scale, out=outputs)

    def _multiply(self, weights: Floats, rows: Floats, out: Floats) -> None:
        """W R' for a block of rows."""
        np.matmul(weights, rows.T, out=out)

    def _backward(
        self, gradient: Floats, examples: int, ranges: Ranges, out: list[Floats], write: RowWriter
    ) -> None:
        """The gradient of the first layer, summed over ranges of slots.

        Args:
            gradient: dL/da of its outputs, shape (outputs, slots * examples).
            examples: of each slot.
            ranges: of slots.
            out: for each range, shape (outputs, columns), overwritten.
            write: writes raw rows.
        """
        features = self._features
        for (first, last), into in zip(ranges, out, strict=True):
            count = (last - first) * examples
            own = gradient[:, first * examples : last * examples]
            left = self._array("left", self._outputs, count + 1)
            np.multiply(own, self._scale, out=left[:, 1:])
            np.negative(left[:, 1:].sum(axis=1), out=left[:, 0])
            width = max(_NARROWEST, _BLOCK // (count + 1) // _NARROWEST * _NARROWEST)
            if (count + 1) * width > len(self._columns):
                self._columns = np.empty((count + 1) * width)
            for low in range(0, features, width):
                columns = min(width, features - low)
                block = self._columns[: (count + 1) * columns].reshape(count + 1, columns)
                block[0] = self._centre[low : low + columns]
                write(first, block[1:].reshape(last - first, examples, columns), 0, low)
                np.matmul(left, block, out=into[:, low : low + columns])
            into[:, features] = own.sum(axis=1)
            into[:, features + 1 :] = 0

    def _losses(
        self,
        scores: Floats,
        labels: NDArray[np.intp],
        gradient: Floats,
        factors: Floats | None,
    ) -> tuple[Floats, Ints]:
        """Write dL/ds; returns the losses, and which slots' predictions are right.

        Args:
            scores: shape (classes, slots * examples).
            labels: shape (slots, examples).
            gradient: of the shape of the scores.
            factors: shape (slots, examples), or None.
        """
        truth = labels.reshape(-1)
        losses = self._own(scores.T, truth, gradient.T).reshape(labels.shape)
        if factors is not None:
            losses = losses * factors
            np.multiply(gradient, factors.reshape(-1), out=gradient)
            rounded(gradient, self._grids.score_gradient, out=gradient)
        right = scores.argmax(axis=0) == truth
        return losses, np.count_nonzero(right.reshape(labels.shape), axis=1)

    @staticmethod
    def _finished(losses: Floats, hits: Ints, *, fits: bool) -> list[SlotLoss]:
        """The loss of each slot, infinite if a product was not exact.

        Args:
            losses: shape (slots, examples).
            hits: of each slot, how many largest scores are those of the labels.
            fits: whether all is in its bounds.
        """
        return [
            SlotLoss(exact_sum(own) if fits else math.inf, hit, len(own))
            for own, hit in zip(losses, hits.tolist(), strict=True)
        ]


class ExactLinearKernel(_ExactKernel):
    """Slot gradients of s = W x; arguments as for `_ExactKernel`."""

    def __init__(self, settings: KernelSettings, grids: Grids) -> None:
        super().__init__(settings, grids, grids.classes, _ROWS)

    def sums(
        self,
        weights: Floats,
        labels: Ints,
        out: Floats,
        write: RowWriter,
        ranges: Ranges,
        factors: Floats | None = None,
    ) -> list[SlotLoss]:
        """See `Kernel.sums`."""
        weights = weights.reshape(self._outputs, -1)
        out = out.reshape(len(labels), *weights.shape)
        fits = self._grids.first_layer_fits(weights, self._size)
        scores = self._forward(weights, labels.shape, write)
        gradient = self._array("gradient", *scores.shape)
        losses, hits = self._losses(scores, labels.astype(np.intp), gradient, factors)
        self._backward(gradient, labels.shape[1], ranges, [out[low] for low, _ in ranges], write)
        return self._finished(losses, hits, fits=fits)

    def _multiply(self, weights: Floats, rows: Floats, out: Floats) -> None:
        score(weights, rows, out.T)

    def products(self, weights: Floats, examples: int, out: Floats) -> None:
        """See `Kernel.products`."""
        weights, out = (flat.reshape(self._outputs, -1) for flat in (weights, out))
        outputs = self._forward(weights, (1, examples), _nothing)
        self._backward(outputs, examples, [(0, 1)], [out], _nothing)


class ExactTwoLayerKernel(_ExactKernel):
    """Slot gradients of h = max(0, W1 x), s = W2 h; arguments as for `_ExactKernel`."""

    def __init__(self, settings: KernelSettings, grids: Grids) -> None:
        super().__init__(settings, grids, grids.hidden, _ROWS_OF_TWO)
        self._active: NDArray[np.bool_] = np.empty((self._outputs, 0), dtype=np.bool_)

    def sums(
        self,
        weights: Floats,
        labels: Ints,
        out: Floats,
        write: RowWriter,
        ranges: Ranges,
        factors: Floats | None = None,
    ) -> list[SlotLoss]:
        """See `Kernel.sums`."""
        first, second = self._layers(weights)
        fits = self._grids.first_layer_fits(first, self._size)
        fits = fits and bool(np.abs(second).max() <= _LARGEST_SECOND)
        parts = second_parts(second)
        hidden = hidden_values(self._forward(first, labels.shape, write), self._grids.hidden_value)
        inputs = self._with_bias(hidden)
        fits = fits and bool(hidden.max() <= _LARGEST_HIDDEN)
        scores = second_scores(parts, inputs)
        gradient = self._array("gradient", *scores.shape)
        losses, hits = self._losses(scores, labels.astype(np.intp), gradient, factors)
        into = [self._layers(out[low]) for low, _ in ranges]
        seconds = [second_out for _, second_out in into]
        self._second_gradient(gradient, inputs, labels.shape[1], ranges, seconds)
        by_output = self._first_gradient(parts, gradient, hidden)
        firsts = [first_out for first_out, _ in into]
        self._backward(by_output, labels.shape[1], ranges, firsts, write)
        return self._finished(losses, hits, fits=fits)

    def _with_bias(self, hidden: Floats) -> Floats:
        """Hidden values with the bias and the padding, shape (columns, examples)."""
        inputs = self._array("inputs", padded_columns(self._outputs), hidden.shape[1])
        inputs[: self._outputs] = hidden
        inputs[self._outputs] = 1
        inputs[self._outputs + 1 :] = 0
        return inputs

    def _second_gradient(
        self, gradient: Floats, inputs: Floats, examples: int, ranges: Ranges, out: list[Floats]
    ) -> None:
        """dL/dW2 = g h' with h in two parts, rounded slot by slot, so that sums are exact."""
        grids = self._grids
        cut = grids.hidden_value - (HIDDEN_RANGE + grids.hidden_value) // 2
        upper, lower = _two_parts(inputs, cut)
        for (first, last), into in zip(ranges, out, strict=True):
            for slot in range(first, last):
                part = slice(slot * examples, (slot + 1) * examples)
                own = np.matmul(gradient[:, part], upper[:, part].T)
                own += np.matmul(gradient[:, part], lower[:, part].T)
                rounded(own, grids.second_gradient, out=own)
                np.add(into if slot > first else 0.0, own, out=into)

    def _first_gradient(
        self, second: tuple[Floats, Floats], gradient: Floats, hidden: Floats
    ) -> Floats:
        """dL/da of the outputs of the first layer, from dL/ds."""
        by_output = self._array("by output", *hidden.shape)
        upper, lower = (part[:, : self._outputs].T for part in second)
        np.matmul(upper, gradient, out=by_output)
        by_output += np.matmul(lower, gradient)
        rounded(by_output, self._grids.hidden_gradient, out=by_output)
        if self._active.shape != hidden.shape:
            self._active = np.empty(hidden.shape, dtype=np.bool_)
        return relu_gradient(hidden, by_output, self._active)

    def _layers(self, flat: Floats) -> tuple[Floats, Floats]:
        """See `two_layers`."""
        return two_layers(flat, self._outputs, len(self._centre))

    def products(self, weights: Floats, examples: int, out: Floats) -> None:
        """See `Kernel.products`."""
        first, second = self._layers(weights)
        first_out, second_out = self._layers(out)
        hidden = self._forward(first, (1, examples), _nothing)
        inputs = self._with_bias(hidden)
        gradient = second_scores((second, second), inputs)
        self._second_gradient(gradient, inputs, examples, [(0, 1)], [second_out])
        by_output = self._first_gradient((second, second), gradient, hidden)
        self._backward(by_output, examples, [(0, 1)], [first_out], _nothing)


def _nothing(first: int, out: Floats, example: int = 0, column: int = 0) -> None:
    """A `RowWriter` that leaves what is there."""
