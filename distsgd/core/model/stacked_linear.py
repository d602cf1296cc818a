"""Linear classifiers on the same minibatch, stacked into one W, with the bits of each by itself.

Stacked products are about twice as fast as thin ones, but a BLAS may add in another order there.
The order is known for OpenBLAS with AVX-512, and every shape is tried out before it is used:

- The small product that a single classifier is scored with adds every 16th feature to one of 16
  *lanes*, one after another, and then the lanes pairwise. With the columns of W and of the rows in
  the order of their lanes, that is 16 stacked products of a sixteenth of the columns each, short
  enough for OpenBLAS to add them one after another too, and 15 sums.
- Stacked products of few columns are small ones themselves.
- Gradients are sums over the examples of a slot, one after another in products of any size.

Where a trial shows other bits, as with the kernels for AVX2, each classifier is computed by its own
kernel (`StackedKernel`). In exact arithmetic no order matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model.architecture import Architecture
from distsgd.core.model.losses import LOSSES
from distsgd.core.model.models import ExactLinear, Linear
from distsgd.core.model.slot_gradient import KernelSettings, LinearKernel, SlotLoss
from distsgd.core.model.stacked_gradient import StackedKernel, StackedRows
from distsgd.core.reduction_tree import root, sum_node

__all__ = ["StackedLinearKernel", "stacked_kernel"]

_REGISTER = 64
"""Bytes of a register of AVX-512, of which each float is a lane."""

_SMALL_PRODUCT = 1_000_000
"""Multiplications up to which OpenBLAS multiplies by its kernels for small matrices."""

_LEAST_COLUMNS = 640
"""Fewest columns for which lanes are long enough for quick products."""

_BLOCK_BYTES = 1 << 20
"""Gradients of a block of columns, which stay in the cache until they are added up."""


class _Buffers(NamedTuple):
    """For a number of slots of a number of examples.

    Attributes:
        rows: the centre, and the raw rows of each slot, shape (slots, 1 + examples, columns).
        parts: scores to be added up, shape (depth of the tree of lanes, slots, 1 + examples,
            models, classes).
        scores: for each loss, shape (classes, its models, slots, examples).
        gradients: likewise, dL/ds.
        weighted: gradient / scale, after that of the centre, shape (models, classes, slots,
            1 + examples).
    """

    rows: Floats
    parts: Floats
    scores: list[Floats]
    gradients: list[Floats]
    weighted: Floats


class StackedLinearKernel(StackedKernel):
    """See the module. Parameters are arranged in the order of the lanes.

    Args:
        settings: of the kernel of each model; but for their losses, they are the same.
        classes: rows of each W.
        slots: most slots that are computed at once, a power of two.
    """

    def __init__(self, settings: Sequence[KernelSettings], classes: int, slots: int) -> None:
        first = settings[0]
        kernels = {one.loss: LinearKernel(one, classes) for one in settings}
        preprocessing, self._columns = first.preprocessing, first.preprocessing.columns
        super().__init__(
            [kernels[one.loss] for one in settings], slots, classes * self._columns, first.dtype
        )
        self._preprocessing, self._dtype, self._classes = preprocessing, first.dtype, classes
        lanes = _REGISTER // np.dtype(first.dtype).itemsize
        wide = self._columns >= _LEAST_COLUMNS and preprocessing.features % lanes == 0
        self._lanes = lanes if wide else 1
        groups = [(loss, len(list(group))) for loss, group in groupby(one.loss for one in settings)]
        self._losses = [LOSSES[loss] for loss, _ in groups]
        ends = np.cumsum([0, *(count for _, count in groups)]).tolist()
        self._groups = [slice(*pair) for pair in pairwise(ends)]
        self._shrink = np.dtype(first.dtype).type(1 / preprocessing.scale)
        self._centre = preprocessing.centre(first.dtype)
        self._shape = len(settings), classes, self._columns
        self._plain = np.empty(self._shape, first.dtype)
        self._of_centre = np.empty(self._shape[:2], first.dtype)
        self._buffers: dict[tuple[int, int], _Buffers] = {}
        self._usable: dict[tuple[int, int], bool] = {}

    @property
    def lanes(self) -> int:
        """See `StackedKernel.lanes`."""
        return self._lanes

    def arranged(self, flat: Floats) -> Floats:
        """See `StackedKernel.arranged`: the columns of each class, lane after lane."""
        shape = (*flat.shape[:-1], self._classes, -1, self._lanes)
        return np.ascontiguousarray(flat.reshape(shape).swapaxes(-1, -2)).reshape(flat.shape)

    def plain(self, arranged: Floats) -> Floats:
        """See `StackedKernel.plain`."""
        shape = (*arranged.shape[:-1], self._classes, self._lanes, -1)
        there = arranged.reshape(shape).swapaxes(-1, -2)
        return np.ascontiguousarray(there).reshape(arranged.shape)

    def begin(self, weights: Floats) -> None:
        """See `StackedKernel.begin`: the centre is scored as a single kernel does."""
        models, classes, columns = self._shape
        shape = (models, classes, columns // self._lanes, self._lanes)
        there = weights.reshape(models, classes, self._lanes, -1)
        for own, into, arranged, score in zip(
            self._plain, self._plain.reshape(shape), there, self._of_centre, strict=True
        ):
            np.copyto(into, arranged.swapaxes(-1, -2))
            np.matmul(own, self._centre, out=score)

    def sums(
        self,
        weights: Floats,
        labels: Ints,
        out: Floats,
        rows: StackedRows,
        factors: Floats | None = None,
    ) -> list[list[SlotLoss]]:
        """See `StackedKernel.sums`."""
        if self._stacks(labels, rows):
            return self._stacked(weights, labels, out, rows, factors)
        plain = np.empty_like(out)
        found = super().sums(self._plain.reshape(out.shape), labels, plain, rows, factors)
        np.copyto(out, self.arranged(plain))
        return found

    def gradients(
        self,
        weights: Floats,
        labels: Ints,
        out: Floats,
        rows: StackedRows,
        factors: Floats | None = None,
    ) -> list[list[SlotLoss]]:
        """See `StackedKernel.gradients`; not stacked, as a sum is rarely wanted so."""
        plain = np.empty_like(out)
        own = self._plain.reshape(weights.shape)
        found = super().gradients(own, labels, plain, rows, factors)
        np.copyto(out, self.arranged(plain))
        return found

    def _stacks(self, labels: Ints, rows: StackedRows) -> bool:
        """Whether stacked products have the bits of single ones, for slots of these shapes."""
        found = self._usable.get(labels.shape)
        if found is None:
            found = self._usable[labels.shape] = self._worth(*labels.shape) and self._agrees(
                labels, rows
            )
        return found

    def _worth(self, slots: int, examples: int) -> bool:
        """Whether stacked products are likely to have the bits, and to be quicker."""
        models, classes, columns = self._shape
        rows = slots * (examples + 1)
        size = models * classes * rows * columns // self._lanes
        return models > 1 and (size > _SMALL_PRODUCT if self._lanes > 1 else size < 64 * 10**6)

    def _agrees(self, labels: Ints, rows: StackedRows) -> bool:
        """Compare the stacked products with single ones on random W."""
        kept = self._plain.copy(), self._of_centre.copy()
        random = np.random.Generator(np.random.PCG64(0))
        weights = random.standard_normal((self._shape[0], self._classes * self._columns))
        arranged = self.arranged((weights * 1e-3).astype(self._dtype))
        self.begin(arranged)
        fast, sure = np.empty_like(arranged), np.empty_like(arranged)
        losses = self._stacked(arranged, labels, fast, rows, None)
        own = self._plain.reshape(arranged.shape)
        expected = super().sums(own, labels, sure, rows)
        self._plain[...], self._of_centre[...] = kept
        return losses == expected and bool(np.array_equal(self.plain(fast), sure))

    def _buffers_of(self, slots: int, examples: int) -> _Buffers:
        found = self._buffers.get((slots, examples))
        if found is None:
            models, classes, _ = self._shape
            dtype = self._dtype
            count = slots * (examples + 1)
            rows = self._preprocessing.raw_buffer(count, dtype).reshape(slots, examples + 1, -1)
            rows[:, 0] = self._centre
            lanes = rows.reshape(slots, examples + 1, -1, self._lanes)
            rows = np.ascontiguousarray(lanes.swapaxes(-1, -2)).reshape(rows.shape)
            sizes = [part.stop - part.start for part in self._groups]
            scores = [np.empty((classes, size, slots, examples), dtype) for size in sizes]
            found = self._buffers[slots, examples] = _Buffers(
                rows,
                np.empty((self._lanes.bit_length(), slots, examples + 1, models, classes), dtype),
                scores,
                [np.empty_like(one) for one in scores],
                np.empty((models, classes, slots, examples + 1), dtype),
            )
        return found

    def _stacked(
        self,
        weights: Floats,
        labels: Ints,
        out: Floats,
        rows: StackedRows,
        factors: Floats | None,
    ) -> list[list[SlotLoss]]:
        """As `sums`, by products of the stacked W."""
        slots, examples = labels.shape
        buffers = self._buffers_of(slots, examples)
        into = buffers.rows[:, 1:]
        if self._lanes > 1:
            rows.write_lanes(into.reshape(*into.shape[:2], self._lanes, -1))
        else:
            rows.write(0, into)
        scored = self._score(weights, buffers)
        truth = labels.reshape(-1).astype(np.intp)
        found: list[list[SlotLoss]] = []
        for part, loss, scores, gradient in zip(
            self._groups, self._losses, buffers.scores, buffers.gradients, strict=True
        ):
            np.subtract(
                scored[:, 1:, part].transpose(3, 2, 0, 1),
                self._of_centre[part].T[..., None, None],
                out=scores,
            )
            np.multiply(scores, self._shrink, out=scores)
            models = part.stop - part.start
            flat, slope = (one.reshape(self._classes, -1) for one in (scores, gradient))
            losses = loss(flat.T, np.tile(truth, models), slope.T).reshape(models, -1)
            if factors is not None:
                own = factors.reshape(-1)
                losses = losses * own
                shaped = slope.reshape(self._classes, models, -1)
                np.multiply(shaped, own, out=shaped)
            found += _slot_losses(losses, scores, truth, labels.shape)
            np.multiply(gradient.swapaxes(0, 1), self._shrink, out=buffers.weighted[part, ..., 1:])
        weighted = buffers.weighted
        np.add.reduce(weighted[..., 1:], axis=-1, out=weighted[..., 0])
        np.negative(weighted[..., 0], out=weighted[..., 0])
        self._multiply(buffers, out)
        return found

    def _score(self, weights: Floats, buffers: _Buffers) -> Floats:
        """R W' of the centre and all rows, shape (slots, 1 + examples, models, classes)."""
        lanes, flat = self._lanes, weights.reshape(-1, self._columns)
        rows = buffers.rows.reshape(-1, self._columns)
        sums = buffers.parts.reshape(len(buffers.parts), len(rows), len(flat))
        if lanes == 1:
            step = max(4, _SMALL_PRODUCT // flat.size // 4 * 4)
            for low in range(0, len(rows), step):
                part = slice(low, low + step)
                np.matmul(flat, rows[part].T, out=sums[0, part].T)
        else:
            length, depth = self._columns // lanes, 0
            for lane in range(lanes):
                part = slice(lane * length, (lane + 1) * length)
                np.matmul(rows[:, part], flat[:, part].T, out=sums[depth])
                depth += 1
                pairs = lane
                while pairs & 1:  # its sum with its neighbour, while both are in the cache
                    depth -= 1
                    np.add(sums[depth - 1], sums[depth], out=sums[depth - 1])
                    pairs >>= 1
        total: Floats = buffers.parts[0]
        return total

    def _multiply(self, buffers: _Buffers, out: Floats) -> None:
        """The gradient of each slot, added up along the tree, a block of columns at a time."""
        models, classes, columns = self._shape
        left = buffers.weighted.reshape(models * classes, *buffers.weighted.shape[2:])
        slots = left.shape[1]
        into = out.reshape(models * classes, columns)
        width = _BLOCK_BYTES // (slots * len(into) * out.itemsize) // 16 * 16
        width = min(max(64, width), columns)
        gradients = np.empty((slots, len(into), width), out.dtype)
        for low in range(0, columns, width):
            part = slice(low, min(low + width, columns))
            own = gradients[:, :, : part.stop - low]
            for slot in range(slots):
                np.matmul(left[:, slot], buffers.rows[slot, :, part], out=own[slot])
            np.copyto(into[:, part], sum_node(root(slots), own, 0, slots))


def _slot_losses(
    losses: Floats, scores: Floats, truth: Ints, shape: tuple[int, ...]
) -> list[list[SlotLoss]]:
    """Of each model, the loss of each slot.

    Args:
        losses: shape (models, slots * examples).
        scores: shape (classes, models, slots, examples).
        truth: shape (slots * examples,).
        shape: (slots, examples).
    """
    classes, models = scores.shape[:2]
    by_model = scores.reshape(classes, models, -1)
    sums = np.add.reduce(losses.reshape(models, *shape), axis=-1, dtype=np.float64)
    right = np.empty(losses.shape, np.bool_)
    for model in range(models):
        np.equal(by_model[:, model].argmax(axis=0), truth, out=right[model])
    hits = np.count_nonzero(right.reshape(models, *shape), axis=-1)
    return [
        [SlotLoss(loss, hit, shape[1]) for loss, hit in zip(*own, strict=True)]
        for own in zip(sums.tolist(), hits.tolist(), strict=True)
    ]


def stacked_kernel(
    model: Architecture, settings: Sequence[KernelSettings], slots: int
) -> StackedKernel:
    """The kernel for several models of one architecture.

    Args:
        model: the architecture.
        settings: of the kernel of each; but for their losses, they are the same.
        slots: most slots that are computed at once, a power of two.
    """
    if isinstance(model, Linear) and not isinstance(model, ExactLinear) and len(settings) > 1:
        return StackedLinearKernel(settings, model.classes, slots)
    kernels = {one.loss: model.kernel(one) for one in settings}
    return StackedKernel(
        [kernels[one.loss] for one in settings], slots, model.parameters, settings[0].dtype
    )
