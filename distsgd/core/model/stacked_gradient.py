"""Gradients of many models on the same minibatch, each with the bits of a kernel of its own.

`StackedKernel` computes one model after another, by the kernel that a single training uses, on rows
that have been gathered once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model.slot_gradient import Kernel, SlotLoss
from distsgd.core.reduction_tree import root, sum_node

__all__ = ["StackedKernel", "StackedRows"]


class StackedRows(Protocol):
    """Writes the raw rows of the slots that were gathered last."""

    def write(self, first: int, out: Floats, example: int = 0, column: int = 0, /) -> None:
        """See `RowWriter`."""
        ...

    def write_lanes(self, out: Floats) -> None:
        """Write all of them with their pixels in lanes, see `stacked_linear`.

        Args:
            out: shape (slots, examples, lanes, columns / lanes): pixel p goes to lane p % lanes.
        """
        ...


class StackedKernel:
    """Sums of slot gradients of several models that differ in W, and perhaps in their loss.

    Args:
        kernels: of each model; those of one loss may be one and the same.
        slots: most slots that are computed at once, a power of two.
        parameters: of each model.
        dtype: of W.
    """

    def __init__(self, kernels: Sequence[Kernel], slots: int, parameters: int, dtype: str) -> None:
        self._kernels = list(kernels)
        self._buffer = np.empty((slots, parameters), dtype=dtype)

    @property
    def lanes(self) -> int:
        """The number of lanes in which rows are wanted; 1 for rows as they are."""
        return 1

    def arranged(self, flat: Floats) -> Floats:
        """Parameters, shape (..., parameters), in the order in which the kernel wants them."""
        return flat

    def plain(self, arranged: Floats) -> Floats:
        """The way back from `arranged`."""
        return arranged

    def begin(self, weights: Floats) -> None:
        """Take note of new W, before `sums` or `gradients` are called with it.

        Args:
            weights: arranged W of each model, shape (models, parameters).
        """

    def sums(
        self,
        weights: Floats,
        labels: Ints,
        out: Floats,
        rows: StackedRows,
        factors: Floats | None = None,
    ) -> list[list[SlotLoss]]:
        """Write each model's sum of the slots' gradients along the tree; returns its slot losses.

        Args:
            weights: arranged W of each model, shape (models, parameters).
            labels: shape (slots, examples).
            out: shape (models, parameters), overwritten; arranged.
            rows: writes the raw rows of the examples.
            factors: the weight of each example, as for `Kernel.gradients`.
        """
        slots = len(labels)
        gradients, losses = self._buffer[:slots], []
        for kernel, own, into in zip(self._kernels, weights, out, strict=True):
            if kernel.adds_slots:
                every = [(0, slots)]
                losses.append(kernel.sums(own, labels, gradients, rows.write, every, factors))
            else:
                losses.append(kernel.gradients(own, labels, gradients, rows.write, factors))
                sum_node(root(slots), gradients, 0, slots)
            np.copyto(into, gradients[0])
        return losses

    def gradients(
        self,
        weights: Floats,
        labels: Ints,
        out: Floats,
        rows: StackedRows,
        factors: Floats | None = None,
    ) -> list[list[SlotLoss]]:
        """Write the gradient of each slot; the other arguments are those of `sums`.

        Args:
            weights: arranged W of each model, shape (models, parameters).
            labels: shape (slots, examples).
            out: shape (slots, models, parameters), overwritten; arranged.
            rows: writes the raw rows of the examples.
            factors: the weight of each example.
        """
        return [
            kernel.gradients(own, labels, out[:, model], rows.write, factors)
            for model, (kernel, own) in enumerate(zip(self._kernels, weights, strict=True))
        ]
