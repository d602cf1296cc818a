"""The models by name: a linear classifier, and a network of two layers; each also exact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from distsgd.core.arrays import Bytes, Floats, Ints, as_matrix, bias_column
from distsgd.core.model.architecture import (
    Architecture,
    Layer,
    exact_weights,
    he_weights,
    initial_weights,
)
from distsgd.core.model.exact_gradient import (
    ExactLinearKernel,
    ExactTwoLayerKernel,
    hidden_values,
    second_parts,
    second_scores,
)
from distsgd.core.model.exact_losses import exact_loss, exact_sum
from distsgd.core.model.features import Preprocessing
from distsgd.core.model.grids import (
    HIDDEN_RANGE,
    SECOND_RANGE,
    WEIGHT_BITS,
    Grids,
    hidden_bits,
)
from distsgd.core.model.slot_gradient import (
    Kernel,
    KernelSettings,
    LinearKernel,
    TwoLayerKernel,
    block_rows,
    relu,
    score,
)

__all__ = [
    "ARITHMETICS",
    "EXACT",
    "LINEAR",
    "MOST_HIDDEN",
    "ExactLinear",
    "ExactTwoLayer",
    "Linear",
    "TwoLayer",
    "hidden_units",
    "make_architecture",
]

LINEAR, _TWO_LAYER = "linear", "mlp"

EXACT = "exact"

ARITHMETICS = ("float", EXACT)
"""How numbers are computed with: in floating point, or so that nothing depends on the machine."""

MOST_HIDDEN = 10_000
"""Hidden units of a network at most: the gradients of more would not fit into memory."""

_BLOCK = 64
"""Rows of a block of the scores of two layers."""


@dataclass(frozen=True)
class Linear(Architecture):
    """s = W x, with W of shape (classes, features + 1)."""

    @property
    def name(self) -> str:
        """ "linear"."""
        return LINEAR

    @property
    def layers(self) -> tuple[Layer, ...]:
        """W."""
        return (Layer(self.classes, self.features),)

    def initial(self, seed: int, scale: float, dtype: str) -> Floats:
        """See `initial_weights`; the scale is the standard deviation."""
        return initial_weights(seed, self.classes, self.features, scale, dtype)

    def kernel(self, settings: KernelSettings) -> Kernel:
        """See `LinearKernel`."""
        return LinearKernel(settings, self.classes)

    @property
    def block(self) -> int:
        """See `block_rows`."""
        return block_rows(*self.layers[0].padded)

    def score(self, weights: Floats, features: Floats, out: Floats) -> Floats:
        """See `slot_gradient.score`."""
        return score(as_matrix(weights, self.classes), features, out)


@dataclass(frozen=True)
class TwoLayer(Architecture):
    """h = max(0, W1 x), s = W2 h, each with a bias.

    W1 has the shape (hidden, features + 1), W2 (classes, hidden + 1).

    Attributes:
        hidden: units of the hidden layer.
    """

    hidden: int

    @property
    def name(self) -> str:
        """Such as "mlp:100"."""
        return f"{_TWO_LAYER}:{self.hidden}"

    @property
    def layers(self) -> tuple[Layer, ...]:
        """W1 and W2."""
        return Layer(self.hidden, self.features), Layer(self.classes, self.hidden)

    def initial(self, seed: int, scale: float, dtype: str) -> Floats:
        """See `he_weights`; the scale multiplies its standard deviations."""
        shapes = [(layer.outputs, layer.inputs) for layer in self.layers]
        return he_weights(seed, shapes, scale, dtype)

    def kernel(self, settings: KernelSettings) -> Kernel:
        """See `TwoLayerKernel`."""
        return TwoLayerKernel(settings, self.hidden, self.classes)

    @property
    def block(self) -> int:
        """The same for all shapes."""
        return _BLOCK

    def score(self, weights: Floats, features: Floats, out: Floats) -> Floats:
        """See `Architecture.score`; in blocks of rows, as `slot_gradient.score`."""
        first, second = self.split(weights)
        inputs = np.zeros((_BLOCK, second.shape[1]), dtype=weights.dtype)
        inputs[:, bias_column(self.hidden)] = 1
        for low in range(0, len(features), _BLOCK):
            rows = features[low : low + _BLOCK]
            hidden = inputs[: len(rows), : self.hidden]
            relu(np.matmul(rows, first.T, out=hidden))
            np.matmul(inputs[: len(rows)], second.T, out=out[low : low + len(rows)])
        return out


class _Exact(Architecture):
    """What exact models have in common; see `grids`."""

    @property
    def weight_bits(self) -> int | None:
        """See `Architecture.weight_bits`."""
        return WEIGHT_BITS

    def total_loss(self, loss: str, scores: Floats, labels: Ints) -> float:
        """See `Architecture.total_loss`; of the bits of dL/ds nothing is left."""
        return exact_sum(exact_loss(loss, 0)(scores, labels, np.empty_like(scores)))

    def penalty(self, flat: Floats, regularization: float) -> float:
        """See `Architecture.penalty`; rounded once."""
        parts = zip(self.layers, self.split(flat), strict=True)
        squares = [part[:, : layer.inputs] ** 2 for layer, part in parts]
        return regularization * sum(map(exact_sum, squares))

    def exceeded_bound(self, flat: Floats, preprocessing: Preprocessing, pixels: Bytes) -> str:
        """See `Architecture.exceeded_bound`."""
        first, *second = self.split(flat)
        with np.errstate(over="ignore"):
            rows = np.abs(first).sum(axis=1)
        unit = "hidden unit" if second else "class"
        text = f"the weights of {unit} {rows.argmax()} add up to {{}} in size"
        sizes = [(text, rows.max(), self._grids("softmax", preprocessing, 1).largest_row)]
        if second:
            features = preprocessing.buffer(len(pixels), "float64")
            preprocessing.fill(pixels, features)
            hidden = np.matmul(features, first.T).max()
            largest = np.abs(second[0]).max()
            sizes.append(("a weight of the second layer is {} in size", largest, 2.0**SECOND_RANGE))
            sizes.append(("a hidden value is {}", hidden, 2.0**HIDDEN_RANGE))
        for text, size, most in sizes:
            if most < size < math.inf:
                return f"{text.format(f'{size:,.6g}')}, and scores are exact up to {most:,.0f}"
        return ""

    def _grids(
        self,
        loss: str,
        preprocessing: Preprocessing,
        examples: int,
        factor: float | None = None,
    ) -> Grids:
        return Grids(
            classes=self.classes, hidden=self.layers[0].outputs * (len(self.layers) - 1),
            examples=examples, loss=loss, scale=preprocessing.scale, factor=factor,
        )  # fmt: skip


@dataclass(frozen=True)
class ExactLinear(_Exact, Linear):
    """`Linear`, exact."""

    def initial(self, seed: int, scale: float, dtype: str) -> Floats:
        """See `exact_weights`; the scale is the standard deviation."""
        return exact_weights(seed, [(self.classes, self.features)], [scale])

    def kernel(self, settings: KernelSettings) -> Kernel:
        """See `ExactLinearKernel`."""
        examples = settings.most or settings.slot_size
        grids = self._grids(
            settings.loss, settings.preprocessing, examples, settings.largest_factor
        )
        return ExactLinearKernel(settings, grids)


@dataclass(frozen=True)
class ExactTwoLayer(_Exact, TwoLayer):
    """`TwoLayer`, exact."""

    def initial(self, seed: int, scale: float, dtype: str) -> Floats:
        """As `he_weights`, by `exact_weights`; the scale multiplies its standard deviations."""
        shapes = [(layer.outputs, layer.inputs) for layer in self.layers]
        scales = [scale * math.sqrt(2 / inputs) for _, inputs in shapes]
        return exact_weights(seed, shapes, scales)

    def kernel(self, settings: KernelSettings) -> Kernel:
        """See `ExactTwoLayerKernel`."""
        examples = settings.most or settings.slot_size
        grids = self._grids(
            settings.loss, settings.preprocessing, examples, settings.largest_factor
        )
        return ExactTwoLayerKernel(settings, grids)

    def score(self, weights: Floats, features: Floats, out: Floats) -> Floats:
        """See `Architecture.score`; the scores are those of training."""
        first, second = self.split(weights)
        parts = second_parts(second)
        inputs = np.zeros((second.shape[1], _BLOCK))
        inputs[bias_column(self.hidden)] = 1
        for low in range(0, len(features), _BLOCK):
            rows = features[low : low + _BLOCK]
            own = inputs[:, : len(rows)]
            hidden = np.matmul(first, rows.T)
            own[: self.hidden] = hidden_values(hidden, hidden_bits(self.hidden))
            out[low : low + len(rows)] = second_scores(parts, own).T
        return out


def hidden_units(name: str) -> int:
    """Hidden units of a model by its name: 0 of "linear", HIDDEN of "mlp:HIDDEN".

    Raises:
        ValueError: no model has that name.
    """
    if name == LINEAR:
        return 0
    kind, _, hidden = name.partition(":")
    # Only ASCII digits, without a sign or a leading 0: a model has one name.
    plain = hidden.isascii() and hidden.isdecimal() and not hidden.startswith("0")
    if kind != _TWO_LAYER or not plain or len(hidden) > 9 or int(hidden) > MOST_HIDDEN:
        raise ValueError(f"there is no model {name!r}")
    return int(hidden)


@cache
def make_architecture(
    name: str, features: int, classes: int, arithmetic: str = ARITHMETICS[0]
) -> Architecture:
    """The model of a name.

    Args:
        name: "linear" or "mlp:HIDDEN".
        features: pixels of an example.
        classes: number of classes.
        arithmetic: one of `ARITHMETICS`.

    Raises:
        ValueError: no model has that name.
    """
    hidden = hidden_units(name)
    if arithmetic == EXACT:
        if hidden:
            return ExactTwoLayer(features, classes, hidden)
        return ExactLinear(features, classes)
    return TwoLayer(features, classes, hidden) if hidden else Linear(features, classes)
