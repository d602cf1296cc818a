"""What all models share: layers of weights with a bias, in one flat padded vector.

Initial weights, the layout of parameters in memory and in checkpoints, the L2 penalty, and the
loss and confusion matrix of a model on any examples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from distsgd.core.arrays import Bytes, Floats, Ints, padded_columns
from distsgd.core.model.features import Preprocessing
from distsgd.core.model.grids import WEIGHT_BITS
from distsgd.core.model.losses import LOSSES, penalty
from distsgd.core.model.mistakes import SurestMistakes
from distsgd.core.model.slot_gradient import Kernel, KernelSettings, SlotLoss
from distsgd.core.portable import normals, rounded

__all__ = [
    "Architecture",
    "Layer",
    "decay_factors",
    "exact_weights",
    "he_weights",
    "initial_weights",
    "measure",
    "measure_all",
    "pad",
    "unpad",
]


_WEIGHTS_STREAM = 0
"""Random stream of the initial W of one layer."""

_LAYERS_STREAM = 2
"""Random streams of the initial weights of several layers; stream 1 is the plan's."""

_EXACT_STREAM = 3
"""Random streams of the first weights of exact models."""


def initial_weights(seed: int, classes: int, features: int, scale: float, dtype: str) -> Floats:
    """W = randn(classes, features + 1) * scale with zero bias, flat and padded.

    Source: CS231n notes, "Optimization": W = np.random.randn(10, 3073) * 0.0001.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, _WEIGHTS_STREAM])))
    weights = rng.standard_normal((classes, features + 1)) * scale
    weights[:, features] = 0
    return pad(weights.astype(dtype))


def he_weights(seed: int, layers: Sequence[tuple[int, int]], scale: float, dtype: str) -> Floats:
    """randn * scale * sqrt(2 / inputs) for each layer, with zero bias; flat and padded.

    With a scale of 1 and features of unit variance, hidden units max(0, W x) keep the variance of
    their inputs, for any number of inputs.

    Args:
        seed: of the run.
        layers: (outputs, inputs) of each layer.
        scale: multiplies the standard deviations.
        dtype: "float32" or "float64".

    Source: He, Zhang, Ren and Sun 2015, eq. 10; CS231n notes, "Setting up the data".
    """
    parts = []
    for number, (outputs, inputs) in enumerate(layers):
        sequence = np.random.SeedSequence([seed, _LAYERS_STREAM, number])
        rng = np.random.Generator(np.random.PCG64(sequence))
        weights = np.zeros((outputs, inputs + 1))
        weights[:, :inputs] = rng.standard_normal((outputs, inputs))
        weights *= scale * math.sqrt(2 / inputs)
        parts.append(pad(weights.astype(dtype)))
    return np.concatenate(parts)


def exact_weights(seed: int, layers: Sequence[tuple[int, int]], scales: Sequence[float]) -> Floats:
    """randn(outputs, inputs) * scale for each layer, with the same bits on every machine.

    They are multiples of 2**-32, with zero bias; flat and padded, float64.

    Args:
        seed: of the run.
        layers: (outputs, inputs) of each layer.
        scales: the standard deviation of each.
    """
    parts = []
    for number, ((outputs, inputs), scale) in enumerate(zip(layers, scales, strict=True)):
        weights = np.zeros((outputs, padded_columns(inputs)))
        deviates = normals([seed, _EXACT_STREAM, number], outputs * inputs)
        weights[:, :inputs] = rounded(deviates * scale, WEIGHT_BITS).reshape(outputs, inputs)
        parts.append(weights.reshape(-1))
    return np.concatenate(parts)


def decay_factors(classes: int, features: int, regularization: float, dtype: str) -> Floats:
    """Shape (parameters,): 2 lambda for weights, 0 for the bias and the padding.

    The gradient of lambda * sum of W**2 is 2 lambda W (see `losses.penalty`).
    """
    factors = np.zeros((classes, padded_columns(features)), dtype=dtype)
    factors[:, :features] = 2 * regularization
    return factors.reshape(-1)


def pad(weights: Floats) -> Floats:
    """Flat padded parameters from W of shape (classes, features + 1)."""
    classes, columns = weights.shape
    wide = np.zeros((classes, padded_columns(columns - 1)), dtype=weights.dtype)
    wide[:, :columns] = weights
    return wide.reshape(-1)


def unpad(flat: Floats, classes: int, features: int) -> Floats:
    """W of shape (classes, features + 1), C-contiguous, from flat padded parameters."""
    return np.ascontiguousarray(flat.reshape(classes, -1)[:, : features + 1])


@dataclass(frozen=True)
class Layer:
    """A matrix of weights, shape (outputs, inputs + 1), whose last column is the bias.

    Attributes:
        outputs: rows.
        inputs: columns before the bias.
    """

    outputs: int
    inputs: int

    @property
    def columns(self) -> int:
        """Number of columns with the bias and the padding."""
        return padded_columns(self.inputs)

    @property
    def padded(self) -> tuple[int, int]:
        """Shape in flat parameters."""
        return self.outputs, self.columns

    @property
    def kept(self) -> tuple[int, int]:
        """Shape without padding, as in a checkpoint."""
        return self.outputs, self.inputs + 1


def _views(flat: Floats, shapes: Sequence[tuple[int, int]]) -> list[Floats]:
    """Views of the matrices that are stored one after another in a vector."""
    ends = accumulate((rows * columns for rows, columns in shapes), initial=0)
    return [
        flat[low:high].reshape(shape)
        for (low, high), shape in zip(pairwise(ends), shapes, strict=True)
    ]


def _joined(parts: list[Floats]) -> Floats:
    """One vector of all parts; a single part is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True)
class Architecture(ABC):
    """A model without its parameters: its name, its layers, its kernel and its score function.

    In memory, parameters are one flat vector in which each row of each layer is padded
    (`arrays.padded_columns`). Checkpoints keep them without padding.

    Attributes:
        features: pixels of an example.
        classes: number of classes.
    """

    features: int
    classes: int

    @property
    @abstractmethod
    def name(self) -> str:
        """The value of the setting `model`: "linear" or "mlp:HIDDEN"."""

    @property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """The layers from the pixels to the scores."""

    @abstractmethod
    def initial(self, seed: int, scale: float, dtype: str) -> Floats:
        """Initial flat parameters, shape (parameters,).

        Args:
            seed: of the run.
            scale: the setting `init_scale`.
            dtype: "float32" or "float64".
        """

    @abstractmethod
    def kernel(self, settings: KernelSettings) -> Kernel:
        """A kernel that computes slot gradients."""

    @property
    @abstractmethod
    def block(self) -> int:
        """Rows that `score` computes at once; multiples of it are efficient."""

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
        """Length of the flat padded vector of parameters."""
        return sum(layer.outputs * layer.columns for layer in self.layers)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Shape of the parameters in a checkpoint: of W for one layer, else of one vector."""
        if len(self.layers) == 1:
            return self.layers[0].kept
        return (sum(layer.outputs * (layer.inputs + 1) for layer in self.layers),)

    def split(self, flat: Floats) -> list[Floats]:
        """Each layer, shape (outputs, columns), as a view into flat padded parameters."""
        return _views(flat, [layer.padded for layer in self.layers])

    def split_kept(self, kept: Floats) -> list[Floats]:
        """Each layer, shape (outputs, inputs + 1), as a view into parameters of a checkpoint."""
        return _views(kept.reshape(-1), [layer.kept for layer in self.layers])

    def pad(self, kept: Floats) -> Floats:
        """Flat padded parameters from those of a checkpoint, of shape `kept_shape`."""
        return _joined([pad(part) for part in self.split_kept(kept)])

    def unpad(self, flat: Floats) -> Floats:
        """Parameters as in a checkpoint, of shape `kept_shape`, C-contiguous."""
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

    @property
    def weight_bits(self) -> int | None:
        """W is kept at multiples of 2**-(this), rounded after each update; None: as it comes."""
        return None

    def exceeded_bound(self, flat: Floats, preprocessing: Preprocessing, pixels: Bytes) -> str:
        """Which bound of exact arithmetic is exceeded, and by what; "" if none is.

        Args:
            flat: parameters.
            preprocessing: from pixels to features.
            pixels: of the examples that are looked at, shape (examples, features).
        """
        return ""

    def total_loss(self, loss: str, scores: Floats, labels: Ints) -> float:
        """The sum of the losses of some examples.

        Args:
            loss: "softmax" or "svm".
            scores: shape (examples, classes).
            labels: shape (examples,).
        """
        losses = LOSSES[loss](scores, labels, np.empty_like(scores))
        return float(losses.sum(dtype=np.float64))

    def penalty(self, flat: Floats, regularization: float) -> float:
        """L2 penalty, lambda * sum of W**2 over the weights of all layers; biases are free."""
        return sum(
            penalty(part, layer.inputs, regularization)
            for layer, part in zip(self.layers, self.split(flat), strict=True)
        )


_BLOCKS = 4
"""Blocks of rows whose features are computed at once."""


def measure(
    model: Architecture,
    weights: Floats,
    loss: str,
    preprocessing: Preprocessing,
    batches: Iterable[tuple[Bytes, Ints]],
    mistakes: SurestMistakes | None = None,
) -> tuple[SlotLoss, Ints]:
    """Loss and confusion matrix on batches of (pixels, labels).

    Args:
        model: of the parameters.
        weights: flat parameters, shape (parameters,).
        loss: "softmax" or "svm".
        preprocessing: from pixels to features.
        batches: pixels of shape (examples, features) and labels of shape (examples,).
        mistakes: shown all scores, if given.

    Returns:
        the loss over all batches, and counts of shape (classes, classes): entry [a, b] counts
        the examples of class a whose largest score is that of class b.
    """
    classes = model.classes
    confusion = np.zeros((classes, classes), dtype=np.int64)
    total, examples = 0.0, 0
    rows = model.block * _BLOCKS
    features = preprocessing.buffer(rows, weights.dtype.name)
    scores = np.empty((rows, classes), dtype=weights.dtype)
    for pixels, labels in batches:
        for low in range(0, len(labels), rows):
            part, truth = pixels[low : low + rows], labels[low : low + rows]
            preprocessing.fill(part, features[: len(part)])
            own = model.score(weights, features[: len(part)], scores[: len(part)])
            largest = own.argmax(axis=1)
            np.add.at(confusion, (truth.astype(np.intp), largest), 1)
            if mistakes is not None:
                mistakes.add(own, truth, largest)
            total += model.total_loss(loss, own, truth)
            examples += len(truth)
    return SlotLoss(total, int(np.trace(confusion)), examples), confusion


def measure_all(
    model: Architecture,
    models: Sequence[tuple[Floats, str]],
    preprocessing: Preprocessing,
    batches: Iterable[tuple[Bytes, Ints]],
) -> list[SlotLoss]:
    """What `measure` finds for each of several models, with features that are computed once.

    Args:
        model: of all their parameters.
        models: flat parameters and loss of each.
        preprocessing: as for `measure`.
        batches: likewise.
    """
    if not models:
        return []
    rows, dtype = model.block * _BLOCKS, models[0][0].dtype
    features = preprocessing.buffer(rows, dtype.name)
    scores = np.empty((rows, model.classes), dtype=dtype)
    totals, correct, examples = [0.0] * len(models), [0] * len(models), 0
    for pixels, labels in batches:
        for low in range(0, len(labels), rows):
            part, truth = pixels[low : low + rows], labels[low : low + rows]
            preprocessing.fill(part, features[: len(part)])
            examples += len(truth)
            for number, (weights, loss) in enumerate(models):
                own = model.score(weights, features[: len(part)], scores[: len(part)])
                correct[number] += int(np.count_nonzero(own.argmax(axis=1) == truth))
                totals[number] += model.total_loss(loss, own, truth)
    return [SlotLoss(*found, examples) for found in zip(totals, correct, strict=True)]
