"""The gradient of a slot: a pure function of the weights and of the slot's examples.

A kernel computes it in buffers that are made once. The features X are (R - c) / scale, with R the
raw rows of pixels and c the centre (`Preprocessing`), and no pixel is ever centred or scaled:

- forward, X W' = (R W' - c W') / scale;
- backward, with G = dL_i/ds (one row an example) and H = G / scale, the chain rule through
  s = W x gives dL/dW = G' X = H' R - h c', with h the sum of the rows of H. That is one product,
  with c as one more row, of gradient -h.

Every product is computed for one slot alone, in blocks that depend on shapes only, and everything
else for one example alone. So a slot's bits do not depend on the slots computed with it.

Rows are converted to floats a few slots at a time, into one small buffer that stays in the cache of
the processor from the first product to the last.

Scores and activations are stored class by class, shape (classes, examples), so that numpy's inner
loop goes over examples.

Source: CS231n notes, "Linear classification", "Optimization" and "Backpropagation, Intuitions".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Bytes, Floats, Ints, padded, padded_columns
from distsgd.core.model.features import Preprocessing
from distsgd.core.model.losses import LOSSES

__all__ = [
    "SMALL_PRODUCTS",
    "WHOLE_PRODUCTS",
    "Kernel",
    "KernelSettings",
    "LinearKernel",
    "RowWriter",
    "SlotLoss",
    "TwoLayerKernel",
    "block_columns",
    "block_rows",
    "fitting",
    "relu",
    "score",
    "two_layers",
]

SMALL_PRODUCTS, WHOLE_PRODUCTS = "small", "whole"
"""How `LinearKernel` cuts a slot's products, which decides the bits: into blocks that OpenBLAS
multiplies by its kernels for small matrices; or hardly at all, for a BLAS that has none, and where
scores written example by example take a quarter less time than class by class."""

_WHOLE_ROWS = 64
"""Rows of a block of scores if products are whole."""

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

    The product is computed in blocks of rows whose size depends on the shape of W alone, so a
    slot's scores have the same bits in every process and beside any other slots.

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


_EXAMPLES = 64
"""Examples to compute at once: enough to save calls of numpy, few enough to stay in the cache.

64 rows of 3088 floats are 0.8 MB."""


class RowWriter(Protocol):
    """Writes raw rows, in whole or in part; the bias and the padding stay as they are."""

    def __call__(self, first: int, out: Floats, example: int = 0, column: int = 0, /) -> None:
        """Overwrite an array with pixels.

        Args:
            first: the first slot.
            out: shape (slots, examples, columns).
            example: the first example of each slot.
            column: the first pixel of each example.
        """


class SlotLoss(NamedTuple):
    """Loss and correct predictions of some examples.

    Attributes:
        loss: sum of L_i, without regularisation.
        correct: examples whose largest score is that of their label.
        examples: how many examples.
    """

    loss: float
    correct: int
    examples: int


def fitting(slot_size: int, most: int | None) -> tuple[int, int]:
    """How many slots a kernel computes at once, and the examples that a slot has at most.

    Args:
        slot_size: examples of a full slot.
        most: the examples of all slots together; None if unknown.
    """
    slots = max(1, _EXAMPLES // slot_size)
    if most is None:
        return slots, slot_size
    return min(slots, -(-most // slot_size)), min(slot_size, most)


def layer_scores(weights: Floats, inputs: Floats, out: Floats) -> Floats:
    """s = W h for each example.

    Args:
        weights: W, shape (outputs, inputs).
        inputs: h, shape (inputs, examples).
        out: shape (outputs, examples), overwritten and returned.
    """
    return np.matmul(weights, inputs, out=out)


def relu(values: Floats) -> Floats:
    """h = max(0, a), in place.

    Source: Nair and Hinton 2010.
    """
    return np.maximum(values, 0, out=values)


def weight_gradient(gradient: Floats, inputs: Floats, out: Floats) -> Floats:
    """dL/dW = sum over examples of g h': the chain rule through s = W h.

    Args:
        gradient: g = dL_i/ds, shape (outputs, examples).
        inputs: h, shape (examples, inputs).
        out: shape (outputs, inputs), overwritten and returned.
    """
    return np.matmul(gradient, inputs, out=out)


def input_gradient(weights: Floats, gradient: Floats, out: Floats) -> Floats:
    """dL_i/dh = W' g: the chain rule through s = W h, for its input.

    Args:
        weights: W without the bias, shape (outputs, inputs).
        gradient: g = dL_i/ds, shape (outputs, examples).
        out: shape (inputs, examples), overwritten and returned.
    """
    return np.matmul(weights.T, gradient, out=out)


def relu_gradient(hidden: Floats, gradient: Floats, active: NDArray[np.bool_]) -> Floats:
    """dL_i/da = dL_i/dh where a > 0, else 0, in place: the chain rule through h = max(0, a).

    At the kink, a = 0, the subgradient 0 is taken.

    Args:
        hidden: h; it is above 0 where a is.
        gradient: dL_i/dh, of the same shape; overwritten with dL_i/da, and returned.
        active: scratch of the same shape.
    """
    np.greater(hidden, 0, out=active)
    return np.multiply(gradient, active, out=gradient)


def two_layers(flat: Floats, units: int, columns: int) -> tuple[Floats, Floats]:
    """Views of the layers in flat parameters; see `Architecture.split`.

    Args:
        flat: shape (parameters,).
        units: of the hidden layer.
        columns: of the first layer.
    """
    cut = units * columns
    return flat[:cut].reshape(units, -1), flat[cut:].reshape(-1, padded_columns(units))


class KernelSettings(NamedTuple):
    """What a kernel is made for, whatever the model.

    Attributes:
        loss: "softmax" or "svm".
        preprocessing: from pixels to features.
        slot_size: examples of a full slot, which determines the bits.
        dtype: "float32" or "float64".
        most: the examples of all slots together; None if unknown. Buffers are no larger.
        products: how those of one layer are cut, `SMALL_PRODUCTS` or `WHOLE_PRODUCTS`.
        largest_factor: of an example, which exact arithmetic must know; None without factors.
    """

    loss: str
    preprocessing: Preprocessing
    slot_size: int
    dtype: str
    most: int | None = None
    products: str = SMALL_PRODUCTS
    largest_factor: float | None = None


class Kernel(ABC):
    """Computes the gradients of slots, a few at once, in buffers that are made once.

    Args:
        settings: what it is made for.

    Attributes:
        slots: how many full slots are computed at once.
        adds_slots: whether gradients of slots may be added up in any order: `sums` does so.
    """

    adds_slots = False

    def __init__(self, settings: KernelSettings) -> None:
        preprocessing, dtype = settings.preprocessing, settings.dtype
        self._loss = LOSSES[settings.loss]
        self._features = preprocessing.features
        self._shrink = np.dtype(dtype).type(1 / preprocessing.scale)
        self._centre = preprocessing.centre(dtype)
        self.slots, self._most = fitting(settings.slot_size, settings.most)

    def gradient(
        self,
        weights: Floats,
        pixels: Bytes,
        labels: Ints,
        out: Floats,
        factors: Floats | None = None,
    ) -> SlotLoss:
        """Write the gradient of one slot, and return its loss; see `gradients`.

        Args:
            weights: flat parameters, shape (parameters,).
            pixels: shape (examples, features), uint8.
            labels: shape (examples,).
            out: shape (parameters,), overwritten.
            factors: shape (examples,), or None.
        """

        def write(first: int, rows: Floats, example: int = 0, column: int = 0) -> None:
            part = pixels[example : example + rows.shape[1], column : column + rows.shape[2]]
            np.copyto(rows[0, :, : part.shape[1]], part)

        own = None if factors is None else factors[None]
        return self.gradients(weights, labels[None], out[None], write, own)[0]

    @abstractmethod
    def gradients(
        self,
        weights: Floats,
        labels: Ints,
        out: Floats,
        write: RowWriter,
        factors: Floats | None = None,
    ) -> list[SlotLoss]:
        """Write the sum over each slot's examples of dL_i/dw, and return the slots' losses.

        Args:
            weights: flat parameters, shape (parameters,).
            labels: shape (slots, examples), for any number of slots of one size.
            out: shape (slots, parameters), overwritten.
            write: writes the raw rows of the examples.
            factors: the weight of each example, shape (slots, examples): its loss and its gradient
                are multiplied by it. None: all count alike.
        """

    def sums(
        self,
        weights: Floats,
        labels: Ints,
        out: Floats,
        write: RowWriter,
        ranges: Sequence[tuple[int, int]],
        factors: Floats | None = None,
    ) -> list[SlotLoss]:
        """As `gradients`, but added up over ranges of slots, if the kernel adds slots at all.

        Args:
            weights: as for `gradients`.
            labels: likewise.
            out: likewise; of each range, only the row of its first slot is overwritten.
            write: likewise.
            ranges: slots [first, last), one range after another.
            factors: as for `gradients`.
        """
        raise NotImplementedError

    @abstractmethod
    def products(self, weights: Floats, examples: int, out: Floats) -> None:
        """Only the matrix products of one slot, on what the buffers hold.

        For measuring how near they come to the machine's peak.

        Args:
            weights: flat parameters, shape (parameters,).
            examples: of the slot.
            out: shape (parameters,), overwritten.
        """


class _RowKernel(Kernel):
    """A kernel that holds all raw rows of the slots it computes at once; arguments as `Kernel`."""

    def __init__(self, settings: KernelSettings) -> None:
        super().__init__(settings)
        count = self.slots * (self._most + 1)
        rows = settings.preprocessing.raw_buffer(count, settings.dtype)
        self._rows = rows.reshape(self.slots, self._most + 1, -1)
        """Raw rows of each slot, after the centre."""
        self._rows[:, 0] = self._centre


def _blocks(length: int, size: int) -> list[tuple[int, int]]:
    """Cut a range into blocks of a size; the last may be shorter."""
    return [(low, min(low + size, length)) for low in range(0, length, size)]


class _Views(NamedTuple):
    """Parts of the buffers of a `LinearKernel` for some slots, cut once.

    Attributes:
        rows: raw rows, shape (slots, examples, columns).
        scores: shape (classes, slots * examples), C-contiguous.
        raw: the scores of raw rows, of the same shape; either `scores` or an array of its own.
        gradient: of the same shape.
        by_slot: the same gradient, shape (classes, slots, examples).
        weighted: gradient / scale, of the same shape, in the rows' order.
        of_centre: gradient of the centre, shape (classes, slots).
        scored: blocks of rows, and where their scores go, shape (rows of the block, classes).
        products: for each slot, `weighted` after `of_centre`, shape (classes, examples + 1), and
            the blocks of columns of the centre and rows that it is multiplied by.
    """

    rows: Floats
    scores: Floats
    raw: Floats
    gradient: Floats
    by_slot: Floats
    weighted: Floats
    of_centre: Floats
    scored: list[tuple[Floats, Floats]]
    products: list[tuple[Floats, list[tuple[Floats, slice]]]]


class LinearKernel(_RowKernel):
    """Slot gradients of the linear classifier s = W x; arguments as for `Kernel`.

    Args:
        settings: what it is made for.
        classes: rows of W.
    """

    def __init__(self, settings: KernelSettings, classes: int) -> None:
        super().__init__(settings)
        columns, dtype = settings.preprocessing.columns, settings.dtype
        self._classes = classes
        self._scores = np.empty(classes * self.slots * self._most, dtype=dtype)
        self._gradient = np.empty_like(self._scores)
        self._weighted = np.empty((classes, self.slots, self._most + 1), dtype=dtype)
        if settings.products == WHOLE_PRODUCTS:
            self._raw = np.empty_like(self._scores)  # example by example
            self._step, self._block = _WHOLE_ROWS, columns
        else:
            self._raw = self._scores
            self._step = block_rows(classes, columns)
            self._block = block_columns(settings.slot_size + 1, classes, columns)
        self._views: dict[tuple[int, int], _Views] = {}

    def gradients(
        self,
        weights: Floats,
        labels: Ints,
        out: Floats,
        write: RowWriter,
        factors: Floats | None = None,
    ) -> list[SlotLoss]:
        """See `Kernel.gradients`."""
        slots, examples = labels.shape
        weights = weights.reshape(self._classes, -1)
        out = out.reshape(slots, *weights.shape)
        centre = (weights @ self._centre)[:, None]
        truth = labels.reshape(-1).astype(np.intp)
        best, losses = np.empty_like(truth), np.empty(truth.shape, weights.dtype)
        for low in range(0, slots, self.slots):
            views = self._views_of(min(self.slots, slots - low), examples)
            part = slice(low * examples, low * examples + views.scores.shape[1])
            write(low, views.rows)
            scores = self._score(weights, centre, views)
            losses[part] = self._loss(scores.T, truth[part], views.gradient.T)
            if factors is not None:
                own = factors.reshape(-1)[part]
                losses[part] *= own
                np.multiply(views.gradient, own, out=views.gradient)
            scores.argmax(axis=0, out=best[part])
            np.multiply(views.by_slot, self._shrink, out=views.weighted)
            np.add.reduce(views.weighted, axis=-1, out=views.of_centre)
            np.negative(views.of_centre, out=views.of_centre)
            for slot, (left, blocks) in enumerate(views.products, low):
                into = out[slot]
                for right, columns in blocks:
                    np.matmul(left, right, out=into[:, columns])
        hits = np.count_nonzero((best == truth).reshape(labels.shape), axis=1).tolist()
        return [
            SlotLoss(float(np.add.reduce(loss, dtype=np.float64)), hit, examples)
            for loss, hit in zip(losses.reshape(labels.shape), hits, strict=True)
        ]

    def _views_of(self, slots: int, examples: int) -> _Views:
        """The parts of the buffers for so many slots of so many examples."""
        found = self._views.get((slots, examples))
        if found is None:
            found = self._views[slots, examples] = self._make_views(slots, examples)
        return found

    def _make_views(self, slots: int, examples: int) -> _Views:
        count, columns = slots * examples, self._rows.shape[2]
        scores, gradient = (
            buffer[: self._classes * count].reshape(self._classes, count)
            for buffer in (self._scores, self._gradient)
        )
        raw = scores
        if self._raw is not self._scores:
            raw = self._raw[: self._classes * count].reshape(count, self._classes).T
        weighted = self._weighted[:, :slots, : examples + 1]
        rows = self._rows[:slots, : examples + 1]
        return _Views(
            rows=rows[:, 1:],
            scores=scores,
            raw=raw,
            gradient=gradient,
            by_slot=gradient.reshape(self._classes, slots, examples),
            weighted=weighted[:, :, 1:],
            of_centre=weighted[:, :, 0],
            scored=[
                (rows[slot, 1 + low : 1 + high], raw.T[slot * examples :][low:high])
                for slot in range(slots)
                for low, high in _blocks(examples, self._step)
            ],
            products=[
                (
                    weighted[:, slot],
                    [(rows[slot, :, low:high], slice(low, high))
                     for low, high in _blocks(columns, self._block)],
                )
                for slot in range(slots)
            ],
        )  # fmt: skip

    def _score(self, weights: Floats, centre: Floats, views: _Views) -> Floats:
        """The scores of what is in the rows, shape (classes, slots * examples)."""
        transposed, scores = weights.T, views.scores
        for rows, into in views.scored:
            np.matmul(rows, transposed, out=into)
        np.subtract(views.raw, centre, out=scores)
        np.multiply(scores, self._shrink, out=scores)
        return scores

    def products(self, weights: Floats, examples: int, out: Floats) -> None:
        """See `Kernel.products`."""
        weights, out = (flat.reshape(self._classes, -1) for flat in (weights, out))
        views = self._views_of(1, examples)
        for rows, into in views.scored:
            np.matmul(rows, weights.T, out=into)
        ((left, blocks),) = views.products
        for right, columns in blocks:
            np.matmul(left, right, out=out[:, columns])


class TwoLayerKernel(_RowKernel):
    """Slot gradients of h = max(0, W1 x), s = W2 h, both with a bias; arguments as for `Kernel`.

    Args:
        settings: what it is made for.
        hidden: units of the hidden layer, rows of W1.
        classes: rows of W2.
    """

    def __init__(self, settings: KernelSettings, hidden: int, classes: int) -> None:
        super().__init__(settings)
        dtype = settings.dtype
        self._units, self._classes = hidden, classes
        self._hidden = np.zeros((padded_columns(hidden), self._most), dtype=dtype)
        self._hidden[hidden] = 1  # the bias
        self._active = np.empty((hidden, self._most), dtype=np.bool_)
        self._scores = np.empty((classes, self._most), dtype=dtype)
        self._gradient = np.empty_like(self._scores)
        self._weighted = np.empty((hidden, self._most + 1), dtype=dtype)

    def gradients(
        self,
        weights: Floats,
        labels: Ints,
        out: Floats,
        write: RowWriter,
        factors: Floats | None = None,
    ) -> list[SlotLoss]:
        """See `Kernel.gradients`."""
        first, second = self._layers(weights)
        centre = (first @ self._centre)[:, None]
        labels = labels.astype(np.intp)
        losses = []
        for low in range(0, len(labels), self.slots):
            part = slice(low, low + self.slots)
            write(low, self._rows[: len(labels[part]), 1 : labels.shape[1] + 1])
            every = [None] * len(labels[part]) if factors is None else factors[part]
            losses += [
                self._one(first, second, centre, slot, truth, own, *self._layers(into))
                for slot, (truth, own, into) in enumerate(
                    zip(labels[part], every, out[part], strict=True)
                )
            ]
        return losses

    def _one(
        self,
        first: Floats,
        second: Floats,
        centre: Floats,
        slot: int,
        labels: Ints,
        factors: Floats | None,
        first_out: Floats,
        second_out: Floats,
    ) -> SlotLoss:
        """Loss and gradients of one slot."""
        examples = len(labels)
        inputs, scores = self._forward(first, second, centre, slot, examples)
        gradient = self._gradient[:, :examples]
        losses = self._loss(scores.T, labels, gradient.T)
        if factors is not None:
            losses = losses * factors
            np.multiply(gradient, factors, out=gradient)
        weight_gradient(gradient, inputs.T, second_out)
        self._backward(second, gradient, examples)
        rows = self._rows[slot, : examples + 1]
        weight_gradient(self._weighted[:, : examples + 1], rows, first_out)
        hits = int(np.count_nonzero(scores.argmax(axis=0) == labels))
        return SlotLoss(float(losses.sum(dtype=np.float64)), hits, examples)

    def _forward(
        self, first: Floats, second: Floats, centre: Floats, slot: int, examples: int
    ) -> tuple[Floats, Floats]:
        """Hidden units with the bias, (columns, examples), and scores, (classes, examples)."""
        inputs = self._hidden[:, :examples]
        hidden, scores = inputs[: self._units], self._scores[:, :examples]
        layer_scores(first, self._rows[slot, 1 : examples + 1].T, hidden)
        np.subtract(hidden, centre, out=hidden)
        np.multiply(hidden, self._shrink, out=hidden)
        relu(hidden)
        return inputs, layer_scores(second, inputs, scores)

    def _backward(self, second: Floats, gradient: Floats, examples: int) -> None:
        """Fill `_weighted`, of which the gradient of the first layer is a product with rows."""
        units = self._units
        weighted = self._weighted[:, 1 : examples + 1]
        input_gradient(second[:, :units], gradient, weighted)
        relu_gradient(self._hidden[:units, :examples], weighted, self._active[:, :examples])
        np.multiply(weighted, self._shrink, out=weighted)
        np.negative(weighted.sum(axis=1), out=self._weighted[:, 0])

    def _layers(self, flat: Floats) -> tuple[Floats, Floats]:
        """See `two_layers`."""
        return two_layers(flat, self._units, len(self._centre))

    def products(self, weights: Floats, examples: int, out: Floats) -> None:
        """See `Kernel.products`: the five products of one slot."""
        first, second = self._layers(weights)
        first_out, second_out = self._layers(out)
        inputs, gradient = self._hidden[:, :examples], self._gradient[:, :examples]
        rows = self._rows[0, : examples + 1]
        layer_scores(first, rows[1:].T, inputs[: self._units])
        layer_scores(second, inputs, self._scores[:, :examples])
        weight_gradient(gradient, inputs.T, second_out)
        input_gradient(second[:, : self._units], gradient, self._weighted[:, 1 : examples + 1])
        weight_gradient(self._weighted[:, : examples + 1], rows, first_out)
