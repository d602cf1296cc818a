"""The three loops of the lecture as one writes them on a blackboard.

They differ in one thing: how many examples the gradient of a step looks at.

Source: CS231n notes, "Optimization", gradient descent and minibatch gradient descent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from distsgd.core.arrays import Floats, Ints

__all__ = ["gradient_descent", "minibatch_gradient_descent", "stochastic_gradient_descent"]

Objective = Callable[[Floats, Floats, Ints], tuple[float, Floats]]
"""(W, X, y) -> the mean loss, and its gradient with respect to W."""


def gradient_descent(
    weights: Floats,
    data: Floats,
    labels: Ints,
    objective: Objective,
    *,
    step_size: float,
    steps: int,
) -> Iterator[tuple[Floats, float]]:
    """W <- W - step_size * dL/dW, the gradient being that of all examples.

    Args:
        weights: the first W; not changed.
        data: X, shape (examples, columns).
        labels: y, shape (examples,).
        objective: loss and gradient.
        step_size: the learning rate.
        steps: how many.

    Yields:
        W after each step, and the loss before it.
    """
    weights = weights.copy()
    for _ in range(steps):
        loss, weights_grad = objective(weights, data, labels)
        weights += -step_size * weights_grad  # perform parameter update
        yield weights, loss


def minibatch_gradient_descent(
    weights: Floats,
    data: Floats,
    labels: Ints,
    objective: Objective,
    *,
    step_size: float,
    steps: int,
    batch_size: int = 256,
    seed: int = 0,
) -> Iterator[tuple[Floats, float]]:
    """The same, but the gradient is that of a few examples, drawn anew for each step.

    Args:
        batch_size: examples of a minibatch.
        seed: of the draws; the other arguments are those of `gradient_descent`.
    """
    rng = np.random.default_rng(seed)
    weights = weights.copy()
    for _ in range(steps):
        batch = rng.choice(len(labels), batch_size, replace=False)  # sample 256 examples
        loss, weights_grad = objective(weights, data[batch], labels[batch])
        weights += -step_size * weights_grad  # perform parameter update
        yield weights, loss


def stochastic_gradient_descent(
    weights: Floats,
    data: Floats,
    labels: Ints,
    objective: Objective,
    *,
    step_size: float,
    steps: int,
    seed: int = 0,
) -> Iterator[tuple[Floats, float]]:
    """The extreme case: a minibatch of one example. Also called on-line gradient descent."""
    yield from minibatch_gradient_descent(
        weights,
        data,
        labels,
        objective,
        step_size=step_size,
        steps=steps,
        batch_size=1,
        seed=seed,
    )
