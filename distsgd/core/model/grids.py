"""Exact arithmetic: the grids of its numbers, and the bounds by which every product is exact.

A float64 holds every multiple of 2**-n up to 2**(53 - n) in size. So a sum of such multiples is
exact, in any order, if the sizes of its terms add up to 2**(53 - n) at most: then no partial sum is
ever rounded, and neither the processor nor the BLAS, its threads or blocks can change a bit.

The bounds
----------
Let D be the features, C the classes, H the hidden units, B the examples of a minibatch, S the scale
(a power of two from 1 to 256), X = max(255, S) the largest raw value (a pixel, or S in the place of
the bias), and bits(v) the least n with v <= 2**n. The mean image is rounded to whole numbers.

Weights: multiples of 2**-32 (`WEIGHT_BITS`), as the update leaves them.

Scores of the first layer: S s = sum_j x_j W_kj - sum_j c_j W_kj, with x and the centre c whole
numbers from 0 to X. Each sum has terms of size at most X |W_kj|, multiples of 2**-32, hence

    bits(X) + bits(sum_j |W_kj|) + 32 <= 53:    sum_j |W_kj| <= 2**(21 - bits(X)) = 8192.

That is checked for each row of each W that is used (`first_layer_fits`), exactly, as sums of
multiples of one sign are right up to the bound, and beyond it no smaller than the bound. It does
not depend on D. The difference of the sums is that of terms (x_j - c_j) W_kj, no larger; the
division by S is exact.

dL/ds of softmax is rounded to multiples of 2**-p, and at most 1; of the SVM it is a whole number
up to C - 1, hence p = 0.

Gradient of the first layer: S dW_kj = sum_i g_ki x_ij - (sum_i g_ki) c_j over the examples i, with
g dL/ds of its outputs. A partial sum over the examples A, with the centre, is that of
g_ki (x_ij - c_j) over A less that of g_ki c_j over the others, and without the centre that of
g_ki x_ij over A: all at most sum_i X |g_ki|. Over a whole minibatch

    bits(X) + bits(B) + bits(max |g|) + p <= 53.

With one layer and softmax, max |g| = 1, X <= 256: p = min(30, 45 - bits(B)), 30 up to B = 32768.

Two layers: hidden values h = max(0, a) are rounded to multiples of 2**-q, and checked to be at most
2**10. W2 is checked to be at most 2**6 in size, so it has 6 + 32 = 38 bits, and is cut into two
parts of 19 bits: W2 = U + V, with U multiples of 2**-13, |U| <= 2**6, and V multiples of 2**-32,
|V| <= 2**-14. Products with U and with V are exact each, and added elementwise: one rounding, the
same everywhere. So

    scores:             10 + q + 19 + bits(H + 1) <= 53:       q = min(14, 24 - bits(H + 1))
    dL/dh = W2' g:      19 + p + bits(max sum_k |g_k|) <= 53;   the sum is at most 4, or 2 (C - 1)
    dL/dW2 = g h':      h in two parts of (10 + q) / 2 <= 12 bits:
                        12 + p + bits(max |g|) + bits(B) <= 53

with p = min(24, 41 - bits(B)), 24 up to B = 131072. dL/dh is at most 2**6 max sum_k |g_k|, and is
rounded to multiples of 2**-r with

    bits(X) + bits(B) + bits(max sum_k |g_k|) + 6 + r <= 53:    r at most 30,

which makes the gradient of the first layer exact as above. dL/dW2 is rounded to such multiples that
its sum over a minibatch is exact as well. Whatever is not a matrix product or a sum over examples
is elementwise (`distsgd.core.portable`).

Weighted examples: loss and dL/ds of an example are multiplied by its factor, at most F, and dL/ds
is rounded again. Then max |g| and max sum_k |g_k| are F times as large, and dL/ds of the SVM, no
longer whole, is a multiple of 2**-p with p as for softmax.

What rounding costs: steps of 2**-32 in W are 2e-10, those of float32 at 0.004; dL/ds is wrong by
5e-10 at most, as a float32 at 0.016 is. Training does not notice (see the manual, `exact`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distsgd.core.arrays import Floats

__all__ = ["HIDDEN_RANGE", "SECOND_RANGE", "WEIGHT_BITS", "Grids", "bits", "hidden_bits"]

MANTISSA = 53
"""Bits of a float64."""

WEIGHT_BITS = 32
"""Weights are multiples of 2**-32."""

HIDDEN_RANGE, SECOND_RANGE = 10, 6
"""Hidden values are at most 2**10, weights of the second layer 2**6."""

PART_BITS = (SECOND_RANGE + WEIGHT_BITS) // 2
"""Bits of each of the two parts of the second layer."""

_FINEST, _FINEST_OF_TWO, _FINEST_HIDDEN = 30, 24, 14
_COARSEST = 10
"""Steps of dL/ds, of two layers, and of hidden values, in bits: at most these, and no fewer than
the last, or training would suffer."""

_MEAN_SIZE, _LARGEST_NORMAL = 0.8, 8.6
"""Of a normal deviate: the mean of |x|, and the largest that `portable.normals` gives."""

_PIXEL = 255
_MOST_SCALE = 256


def bits(value: float) -> int:
    """The least n with value <= 2**n, for a value above 0."""
    mantissa, exponent = math.frexp(value)
    return exponent - (mantissa == 0.5)


def hidden_bits(hidden: int) -> int:
    """q: hidden values are multiples of 2**-q."""
    room = MANTISSA - HIDDEN_RANGE - PART_BITS - bits(hidden + 1)
    return min(_FINEST_HIDDEN, room)


@dataclass(frozen=True, kw_only=True)
class Grids:
    """The grids of a training; see the module.

    Attributes:
        classes: C.
        hidden: H, or 0 with one layer.
        examples: B.
        loss: "softmax" or "svm".
        scale: S, what centred pixels are divided by.
        factor: F, the largest weight of an example; None if all count alike.
    """

    classes: int
    hidden: int
    examples: int
    loss: str
    scale: float
    factor: float | None = None

    @property
    def largest_row(self) -> float:
        """The largest sum_j |W_kj| of the first layer."""
        return float(2.0 ** (MANTISSA - WEIGHT_BITS - bits(self._raw)))

    @property
    def _raw(self) -> float:
        return max(_PIXEL, self.scale)

    @property
    def _of_one(self) -> float:
        """The largest dL/ds."""
        largest = 1 if self.loss == "softmax" else max(1, self.classes - 1)
        return largest * (self.factor or 1)

    @property
    def _of_all(self) -> float:
        """The largest sum over the classes of dL/ds, in size."""
        return 4 * (self.factor or 1) if self.loss == "softmax" else 2 * self._of_one

    @cached_property
    def score_gradient(self) -> int:
        """p: dL/ds is a multiple of 2**-p."""
        if self.loss == "svm" and self.factor is None:
            return 0
        return self._room_two() if self.hidden else min(_FINEST, self._room(self._of_one))

    @cached_property
    def hidden_value(self) -> int:
        """q: hidden values are multiples of 2**-q."""
        return hidden_bits(self.hidden)

    @cached_property
    def hidden_gradient(self) -> int:
        """r: dL/dh is a multiple of 2**-r."""
        return min(_FINEST, self._room(self._of_all * 2.0**SECOND_RANGE))

    @cached_property
    def second_gradient(self) -> int:
        """dL/dW2 of a slot is a multiple of 2**-(this)."""
        return MANTISSA - HIDDEN_RANGE - bits(self._of_one) - bits(self.examples)

    def _room(self, largest: float) -> int:
        """Bits that the gradient of the first layer leaves to its g, below the point."""
        return MANTISSA - bits(self._raw) - bits(self.examples) - bits(largest)

    def _room_two(self) -> int:
        by_weights = MANTISSA - PART_BITS - bits(self._of_all)
        half = -(-(HIDDEN_RANGE + self.hidden_value) // 2)
        by_hidden = MANTISSA - half - bits(self._of_one) - bits(self.examples)
        return min(_FINEST_OF_TWO, by_weights, by_hidden)

    def check(self) -> None:
        """See that everything fits.

        Raises:
            ValueError: names the bound, and by how much it is missed.
        """
        scale = self.scale
        if not 1 <= scale <= _MOST_SCALE or 2.0 ** bits(scale) != scale:
            raise ValueError(
                f"a pixel_scale of {scale:g}: it must be a power of two from 1 to {_MOST_SCALE}, "
                "so that the division is exact"
            )
        batch, raw = f"minibatches of {self.examples:,} examples", bits(self._raw)
        if self.hidden:
            self._at_least(
                "a hidden value", self.hidden_value,
                f"{self.hidden:,} hidden units take {bits(self.hidden + 1)} bits, parts of W2 "
                f"{PART_BITS}, and the range of a hidden value {HIDDEN_RANGE}",
            )  # fmt: skip
            self._at_least(
                "dL/dh", self.hidden_gradient,
                f"{batch} take {bits(self.examples)} bits, pixels {raw}, and its range "
                f"{bits(self._of_all * 2.0**SECOND_RANGE)}",
            )  # fmt: skip
        if self.loss == "softmax" or self.factor is not None:
            self._at_least(
                "dL/ds", self.score_gradient,
                f"{batch} take {bits(self.examples)} bits, and pixels {raw}",
            )  # fmt: skip
        elif self._room(self._of_one) < 0 or (self.hidden and self._room_two() < 0):
            raise ValueError(
                f"{batch} take {bits(self.examples)} bits, pixels {raw}, and dL/ds of "
                f"{self.classes:,} classes {bits(self._of_one)}: more than the {MANTISSA} of a "
                "float64"
            )

    def check_first(self, features: int, scales: Sequence[float]) -> None:
        """See that first weights are well within their bounds.

        Args:
            features: D.
            scales: standard deviations of the first weights of each layer.

        Raises:
            ValueError: names the bound, and by how much it is missed.
        """
        row = _MEAN_SIZE * scales[0] * features
        if not row <= self.largest_row / 2:
            raise ValueError(
                f"first weights whose {features:,} a row add up to about {row:.3g} in size, more "
                f"than half the {self.largest_row:,.0f} of which the scores are exact"
            )
        if len(scales) > 1 and not (most := _LARGEST_NORMAL * scales[1]) <= 2.0**SECOND_RANGE:
            raise ValueError(
                f"first weights of the second layer of up to {most:.3g}, more than "
                f"{2**SECOND_RANGE}"
            )

    def _at_least(self, what: str, found: int, why: str) -> None:
        if found < _COARSEST:
            raise ValueError(
                f"{why}: of the {MANTISSA} bits of a float64, {found} are left for the fraction of "
                f"{what}, {_COARSEST - found} too few"
            )

    def first_layer_fits(self, weights: Floats, scratch: Floats) -> bool:
        """Whether products of raw rows with W are exact.

        Args:
            weights: of the first layer, shape (outputs, columns).
            scratch: of the same shape, overwritten.
        """
        # By Cauchy and Schwarz: (sum |W_kj|)**2 <= columns * sum W_kj**2. Far from the bound, what
        # the product rounds does not matter.
        flat, far = weights.reshape(-1), self.largest_row / 2
        if weights.shape[1] * float(np.dot(flat, flat)) <= far * far:
            return True
        np.abs(weights, out=scratch)
        return bool((scratch.sum(axis=1) <= self.largest_row).all())
