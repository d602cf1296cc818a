"""The gradients of single examples, and their inner products, without any gradient being made.

The gradient of an example's loss for a layer s = W h is the outer product of its error e = dL_i/ds
and the input h. So two gradients have the inner product (e . e') (h . h'), added over the layers:
two short dot products in place of one over all of W.

Everything is computed in the type of W by plain products: to rounding what a kernel computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distsgd.core.arrays import Floats, Ints, bias_column
from distsgd.core.model.architecture import Architecture
from distsgd.core.model.losses import LOSSES

__all__ = ["ExampleGradients", "example_gradients", "inner_products", "products_with", "summed"]


class ExampleGradients(NamedTuple):
    """dL_i/dW of some examples, of each layer the two vectors that it is the outer product of.

    Attributes:
        losses: L_i, shape (examples,).
        scores: shape (examples, classes).
        errors: dL_i/ds of each layer's outputs, shape (examples, outputs).
        inputs: h of each layer with the bias 1, shape (examples, columns).
    """

    losses: Floats
    scores: Floats
    errors: list[Floats]
    inputs: list[Floats]


def example_gradients(
    model: Architecture,
    weights: Floats,
    features: Floats,
    labels: Ints,
    loss: str,
    factors: Floats | None = None,
) -> ExampleGradients:
    """Losses and gradients of some examples.

    Args:
        model: linear, or of two layers.
        weights: flat padded parameters, shape (parameters,).
        features: shape (examples, columns), from `Preprocessing.fill`.
        labels: shape (examples,).
        loss: "softmax" or "svm".
        factors: of the examples, shape (examples,), which multiply gradients but not losses; None
            if all count alike.
    """
    layers = model.split(weights)
    inputs, outputs = [features], features @ layers[0].T
    for layer, shape in zip(layers[1:], model.layers[1:], strict=True):
        hidden = np.zeros((len(features), layer.shape[1]), weights.dtype)
        np.maximum(outputs, 0, out=hidden[:, : shape.inputs])
        hidden[:, bias_column(shape.inputs)] = 1
        inputs.append(hidden)
        outputs = hidden @ layer.T
    error = np.empty_like(outputs)
    losses = LOSSES[loss](outputs, labels, error)
    if factors is not None:
        error *= factors[:, None]
    errors: list[Floats] = [error]
    for number in reversed(range(1, len(layers))):
        units = model.layers[number].inputs
        error = errors[0] @ layers[number][:, :units]
        errors.insert(0, error * (inputs[number][:, :units] > 0))
    return ExampleGradients(losses, outputs, errors, inputs)


def inner_products(
    ours: ExampleGradients, theirs: ExampleGradients, alike: Floats | None = None
) -> Floats:
    """The inner product of each gradient of ours with each of theirs.

    Args:
        ours: of n examples.
        theirs: of m examples.
        alike: x . x' of their features with the bias, shape (n, m), where it is known.

    Returns:
        shape (n, m).
    """
    total: Floats | None = None
    for number, (errors, inputs) in enumerate(zip(ours.errors, ours.inputs, strict=True)):
        near = alike if number == 0 and alike is not None else inputs @ theirs.inputs[number].T
        part = (errors @ theirs.errors[number].T) * near
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total


def summed(gradients: ExampleGradients, shares: Floats) -> list[Floats]:
    """Weighted sums of gradients.

    Args:
        gradients: of m examples.
        shares: of each example in each sum, shape (m, sums).

    Returns:
        for each layer, shape (sums, outputs, columns).
    """
    return [
        np.stack([(errors * share[:, None]).T @ inputs for share in shares.T])
        for errors, inputs in zip(gradients.errors, gradients.inputs, strict=True)
    ]


def products_with(gradients: ExampleGradients, vectors: Sequence[Floats]) -> Floats:
    """The inner product of each gradient with each of some vectors in the space of W.

    Args:
        gradients: of n examples.
        vectors: as `summed` returns them.

    Returns:
        shape (n, vectors).
    """
    total: Floats | None = None
    for errors, inputs, vector in zip(gradients.errors, gradients.inputs, vectors, strict=True):
        count, outputs, columns = vector.shape
        seen = (inputs @ vector.reshape(-1, columns).T).reshape(len(inputs), count, outputs)
        part = np.einsum("nto,no->nt", seen, errors)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total
