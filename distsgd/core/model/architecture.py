"""What every model has in common: layers of weights with a bias, in one flat padded vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np

from distsgd.core.arrays import Bytes, Floats, Ints, padded_columns
from distsgd.core.model.features import Preprocessing
from distsgd.core.model.initial import decay_factors, pad, unpad
from distsgd.core.model.losses import penalty
from distsgd.core.model.slot_gradient import SlotLoss

__all__ = ["Architecture", "Kernel", "Layer"]


class Kernel(Protocol):
    """Computes the gradients of a few slots at once, in buffers that are made once.

    Attributes:
        slots: how many slots of full size may be computed at once.
    """

    slots: int

    def rows(self, slots: int, examples: int) -> Floats:
        """Where the raw rows of the next slots belong, shape (slots, examples, columns)."""
        ...

    def gradient(self, weights: Floats, pixels: Bytes, labels: Ints, out: Floats) -> SlotLoss:
        """The gradient of one slot; see `gradients`.

        Args:
            weights: flat parameters.
            pixels: shape (examples, features), uint8.
            labels: shape (examples,).
            out: shape (parameters,), overwritten.
        """
        ...

    def gradients(self, weights: Floats, labels: Ints, out: Floats) -> list[SlotLoss]:
        """Write the sums over each slot's examples of dL_i/dw, and return the slots' losses.

        Args:
            weights: flat parameters, shape (parameters,).
            labels: shape (slots, examples), of the examples whose raw rows are in `rows`.
            out: shape (slots, parameters), overwritten.
        """
        ...


@dataclass(frozen=True)
class Layer:
    """A matrix of weights, shape (outputs, inputs + 1), whose last column is the bias.

    Attributes:
        outputs: its rows.
        inputs: its columns before the bias.
    """

    outputs: int
    inputs: int

    @property
    def columns(self) -> int:
        """Columns with the bias and the padding."""
        return padded_columns(self.inputs)

    @property
    def padded(self) -> tuple[int, int]:
        """Its shape in flat parameters."""
        return self.outputs, self.columns

    @property
    def kept(self) -> tuple[int, int]:
        """Its shape without padding, as in a checkpoint."""
        return self.outputs, self.inputs + 1


def _views(flat: Floats, shapes: Sequence[tuple[int, int]]) -> list[Floats]:
    """The matrices of these shapes that lie one after another in a vector, as views."""
    ends = accumulate((rows * columns for rows, columns in shapes), initial=0)
    return [
        flat[low:high].reshape(shape)
        for (low, high), shape in zip(pairwise(ends), shapes, strict=True)
    ]


def _joined(parts: list[Floats]) -> Floats:
    """One vector; no copy if there is only one part."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True)
class Architecture(ABC):
    """A model without its parameters: what it is called, its layers, and what computes with it.

    Parameters are computed with as one flat vector, in which each row of each layer is padded
    (`arrays.padded_columns`), and kept in checkpoints without padding.

    Attributes:
        features: pixels of an example.
        classes: how many classes there are.
    """

    features: int
    classes: int

    @property
    @abstractmethod
    def name(self) -> str:
        """As in the setting `model`."""

    @property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """From the pixels to the scores."""

    @abstractmethod
    def initial(self, seed: int, scale: float, dtype: str) -> Floats:
        """The flat parameters that a run starts from.

        Args:
            seed: seed of the run.
            scale: the setting `init_scale`.
            dtype: "float32" or "float64".
        """

    @abstractmethod
    def kernel(
        self,
        loss: str,
        preprocessing: Preprocessing,
        slot_size: int,
        dtype: str,
        most: int | None = None,
    ) -> Kernel:
        """What computes slot gradients; see `Kernel`.

        Args:
            loss: "softmax" or "svm".
            preprocessing: from pixels to features.
            slot_size: examples of a slot.
            dtype: "float32" or "float64".
            most: the most examples of all slots together, if that is known.
        """

    @property
    @abstractmethod
    def block(self) -> int:
        """Rows that `score` computes at once; a multiple of it is a good number to give it."""

    @abstractmethod
    def score(self, weights: Floats, features: Floats, out: Floats) -> Floats:
        """The scores of each row of features.

        Args:
            weights: flat parameters, shape (parameters,).
            features: shape (rows, columns), from `Preprocessing.fill`.
            out: shape (rows, classes), overwritten and returned.
        """

    @cached_property
    def parameters(self) -> int:
        """Length of the flat padded vector."""
        return sum(layer.outputs * layer.columns for layer in self.layers)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Shape of the parameters in a checkpoint.

        That of W if there is one layer; else of one vector, with the layers one after another.
        """
        if len(self.layers) == 1:
            return self.layers[0].kept
        return (sum(layer.outputs * (layer.inputs + 1) for layer in self.layers),)

    def split(self, flat: Floats) -> list[Floats]:
        """Each layer, shape (outputs, columns), as a view into flat padded parameters."""
        return _views(flat, [layer.padded for layer in self.layers])

    def pad(self, kept: Floats) -> Floats:
        """Flat padded parameters from those of a checkpoint, shape `kept_shape`."""
        parts = _views(kept.reshape(-1), [layer.kept for layer in self.layers])
        return _joined([pad(part) for part in parts])

    def unpad(self, flat: Floats) -> Floats:
        """Parameters as they are kept in a checkpoint, shape `kept_shape`, C-contiguous."""
        parts = [
            unpad(part, layer.outputs, layer.inputs).reshape(-1)
            for layer, part in zip(self.layers, self.split(flat), strict=True)
        ]
        return _joined(parts).reshape(self.kept_shape)

    def decay(self, regularization: float, dtype: str) -> Floats:
        """Shape (parameters,): 2 lambda for weights, 0 for biases and padding."""
        return _joined([
            decay_factors(layer.outputs, layer.inputs, regularization, dtype)
            for layer in self.layers
        ])  # fmt: skip

    def penalty(self, flat: Floats, regularization: float) -> float:
        """L2 penalty, lambda * sum of W**2 over the weights of all layers; biases are free."""
        return sum(
            penalty(part, layer.inputs, regularization)
            for layer, part in zip(self.layers, self.split(flat), strict=True)
        )
