"""The gradient of one slot through two layers: a pure function of the weights and its examples.

The steps of backpropagation through a layer, each one formula of the chain rule, in place.

A layer is s = W h, and its input h = max(0, a). From the gradient g = dL_i/ds follow, example by
example, that of the weights, that of the input, and that of what the input was made of.

Activations lie unit by unit: shape (units, examples), so that numpy goes over examples innermost.

Source: CS231n notes, "Backpropagation, Intuitions"; Rumelhart, Hinton and Williams 1986.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Bytes, Floats, Ints, padded_columns
from distsgd.core.model.features import Preprocessing
from distsgd.core.model.losses import LOSSES
from distsgd.core.model.slot_gradient import SlotLoss, fitting

__all__ = ["TwoLayerKernel", "relu"]


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


class TwoLayerKernel:
    """Slot gradients of h = max(0, W1 x), s = W2 h, both with a bias, in buffers made once.

    As in `SlotKernel`, the features X are (R - c) / scale, with R the raw rows, and no pixel is
    ever centred or scaled: W1 X' = (W1 R' - W1 c) / scale. With D the gradients with respect to
    W1 x, divided by the scale, dL/dW1 = D R - d c', with d the sums of the rows of D: one
    product, to which c is a row more, of gradient -d.

    All of it is a slot's own, but for W1 c, which is the same for all. So a slot's bits do not
    depend on the slots that are computed with it.

    Args:
        loss: "softmax" or "svm".
        hidden: units of the hidden layer.
        classes: number of classes.
        preprocessing: from pixels to features.
        slot_size: examples of a slot, which fixes the bits.
        dtype: "float32" or "float64".
        most: the most examples of all slots together, if that is known: buffers are no larger.

    Attributes:
        slots: how many slots of full size may be computed at once.
    """

    def __init__(
        self,
        loss: str,
        hidden: int,
        classes: int,
        preprocessing: Preprocessing,
        slot_size: int,
        dtype: str,
        most: int | None = None,
    ) -> None:
        self._loss = LOSSES[loss]
        self._features, self._units, self._classes = preprocessing.features, hidden, classes
        self._shrink = np.dtype(dtype).type(1 / preprocessing.scale)
        self._centre = preprocessing.centre(dtype)
        self.slots, most = fitting(slot_size, most)
        rows = preprocessing.raw_buffer(self.slots * (most + 1), dtype)
        self._rows = rows.reshape(self.slots, most + 1, -1)
        self._rows[:, 0] = self._centre
        # Unit by unit and class by class, so that numpy goes over examples innermost.
        self._hidden = np.zeros((padded_columns(hidden), most), dtype=dtype)
        self._hidden[hidden] = 1  # the bias
        self._active = np.empty((hidden, most), dtype=np.bool_)
        self._scores = np.empty((classes, most), dtype=dtype)
        self._gradient = np.empty_like(self._scores)
        self._weighted = np.empty((hidden, most + 1), dtype=dtype)

    def rows(self, slots: int, examples: int) -> Floats:
        """Where the raw rows of the next slots belong, shape (slots, examples, columns).

        Args:
            slots: how many; 1 if they are shorter than the others.
            examples: of each slot.
        """
        return self._rows[:slots, 1 : examples + 1]

    def gradient(self, weights: Floats, pixels: Bytes, labels: Ints, out: Floats) -> SlotLoss:
        """See `Kernel`."""
        np.copyto(self.rows(1, len(labels))[0, :, : self._features], pixels)
        return self.gradients(weights, labels[None], out[None])[0]

    def gradients(self, weights: Floats, labels: Ints, out: Floats) -> list[SlotLoss]:
        """See `Kernel`.

        Source: CS231n notes, "Backpropagation", and "Putting it together: minimal neural net".
        """
        first, second = self._layers(weights)
        centre = (first @ self._centre)[:, None]
        return [
            self._one(first, second, centre, slot, truth, *self._layers(out[slot]))
            for slot, truth in enumerate(labels)
        ]

    def _one(
        self,
        first: Floats,
        second: Floats,
        centre: Floats,
        slot: int,
        labels: Ints,
        first_out: Floats,
        second_out: Floats,
    ) -> SlotLoss:
        """Loss and gradients of one slot."""
        examples = len(labels)
        inputs, scores = self._forward(first, second, centre, slot, examples)
        gradient = self._gradient[:, :examples]
        losses = self._loss(scores.T, labels, gradient.T)
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
        """Views of the layers in flat parameters; see `Architecture.split`."""
        cut = self._units * len(self._centre)
        return flat[:cut].reshape(self._units, -1), flat[cut:].reshape(self._classes, -1)

    def products(self, weights: Floats, examples: int, out: Floats) -> None:
        """Only the four products of one slot, on what its buffers hold.

        For measuring how near they come to the peak of the machine.
        """
        first, second = self._layers(weights)
        first_out, second_out = self._layers(out)
        inputs, gradient = self._hidden[:, :examples], self._gradient[:, :examples]
        rows = self._rows[0, : examples + 1]
        layer_scores(first, rows[1:].T, inputs[: self._units])
        layer_scores(second, inputs, self._scores[:, :examples])
        weight_gradient(gradient, inputs.T, second_out)
        input_gradient(second[:, : self._units], gradient, self._weighted[:, 1 : examples + 1])
        weight_gradient(self._weighted[:, : examples + 1], rows, first_out)
