"""The steps of backpropagation through a layer, each one formula of the chain rule, in place.

A layer is s = W h, and its input h = max(0, a). From the gradient g = dL_i/ds follow, example by
example, that of the weights, that of the input, and that of what the input was made of.

Activations lie unit by unit: shape (units, examples), so that numpy goes over examples innermost.

Source: CS231n notes, "Backpropagation, Intuitions"; Rumelhart, Hinton and Williams 1986.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats

__all__ = ["input_gradient", "layer_scores", "relu", "relu_gradient", "weight_gradient"]


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
