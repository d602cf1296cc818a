"""Gradients of many models on the same minibatch, each with the bits of a kernel of its own.

`StackedKernel` computes one model after another, by the kernel that a single training uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model.slot_gradient import Kernel, RowWriter, SlotLoss
from distsgd.core.reduction_tree import root, sum_node

__all__ = ["StackedKernel"]


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

    def keep(self, models: Sequence[int]) -> None:
        """Go on with these models alone, in this order; `sums` is given the W of those."""
        self._kernels = [self._kernels[model] for model in models]

    def sums(
        self,
        weights: Floats,
        labels: Ints,
        out: Floats,
        write: RowWriter,
        factors: Floats | None = None,
    ) -> list[list[SlotLoss]]:
        """Write each model's sum of the slots' gradients along the tree; returns its slot losses.

        Args:
            weights: flat W of each model, shape (models, parameters).
            labels: shape (slots, examples).
            out: shape (models, parameters), overwritten.
            write: writes the raw rows of the examples.
            factors: the weight of each example, as for `Kernel.gradients`.
        """
        slots = len(labels)
        gradients, losses = self._buffer[:slots], []
        for kernel, own, into in zip(self._kernels, weights, out, strict=True):
            if kernel.adds_slots:
                every = [(0, slots)]
                losses.append(kernel.sums(own, labels, gradients, write, every, factors))
            else:
                losses.append(kernel.gradients(own, labels, gradients, write, factors))
                sum_node(root(slots), gradients, 0, slots)
            np.copyto(into, gradients[0])
        return losses

    def gradients(
        self,
        weights: Floats,
        labels: Ints,
        out: Floats,
        write: RowWriter,
        factors: Floats | None = None,
    ) -> list[list[SlotLoss]]:
        """Write the gradient of each slot; arguments as for `sums`, but for one.

        Args:
            weights: flat W of each model, shape (models, parameters).
            labels: shape (slots, examples).
            out: shape (slots, models, parameters), overwritten.
            write: writes the raw rows of the examples.
            factors: the weight of each example, as for `Kernel.gradients`.
        """
        return [
            kernel.gradients(own, labels, out[:, model], write, factors)
            for model, (kernel, own) in enumerate(zip(self._kernels, weights, strict=True))
        ]
