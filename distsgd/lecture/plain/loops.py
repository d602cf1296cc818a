"""The loops of the lecture as on the blackboard: numerical gradients, and gradient descent.

The three descents differ in one thing: how many examples the gradient of a step averages.

Source: CS231n notes, "Optimization": computing the gradient numerically with finite differences;
gradient descent; minibatch gradient descent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from distsgd.core.arrays import Floats, Ints

__all__ = [
    "central_gradient",
    "eval_numerical_gradient",
    "gradient_descent",
    "minibatch_gradient_descent",
    "partials",
    "steps_without_kinks",
    "stochastic_gradient_descent",
]


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
    """The same, but the gradient is that of a few examples, redrawn at each step.

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


Function = Callable[[Floats], float]

_TOGETHER = 16
"""Arrays that a function of many is evaluated at in one call."""


def eval_numerical_gradient(f: Function, x: Floats, h: float = 1e-5) -> Floats:
    """df/dx_i = (f(x + h e_i) - f(x)) / h for every entry of x, one after the other.

    It takes one evaluation of f more than x has entries: 30,731 for W of shape (10, 3073).

    Args:
        f: a function of one array.
        x: where; of any shape. Changed in place and put back.
        h: length of the step.
    """
    fx = f(x)  # evaluate function value at original point
    grad = np.zeros(x.shape)
    it = np.nditer(x, flags=["multi_index"], op_flags=["readwrite"])
    while not it.finished:
        ix = it.multi_index  # evaluate function at x + h
        old_value = x[ix]
        x[ix] = old_value + h
        fxh = f(x)
        x[ix] = old_value  # restore to previous value (very important!)
        grad[ix] = (fxh - fx) / h  # the slope
        it.iternext()
    return grad


def central_gradient(f: Function, x: Floats, h: float = 1e-5) -> Floats:
    """df/dx_i = (f(x + h e_i) - f(x - h e_i)) / (2 h): an error of h**2 instead of h.

    Two evaluations of f for each entry of x; arguments as in `eval_numerical_gradient`.
    """
    grad = np.zeros(x.shape)
    it = np.nditer(x, flags=["multi_index"], op_flags=["readwrite"])
    while not it.finished:
        ix = it.multi_index
        old_value = x[ix]
        x[ix] = old_value + h
        above = f(x)
        x[ix] = old_value - h
        below = f(x)
        x[ix] = old_value
        grad[ix] = (above - below) / (2 * h)
        it.iternext()
    return grad


def partials(
    losses: Callable[[Floats], Floats], x: Floats, chosen: Ints, steps: Floats, scheme: str
) -> tuple[Floats, int]:
    """Some of the partial derivatives, each with a step of its own.

    Args:
        losses: a function of many arrays at once, shape (count, *x.shape), that gives a value
            for each: what is computed for all of them together takes less time.
        x: where.
        chosen: flat indices into x.
        steps: h for each of them.
        scheme: "one-sided" or "central".

    Returns:
        the derivatives, and how many arrays the function was evaluated at for them.
    """
    one_sided = scheme == "one-sided"
    calls = int(one_sided)
    fx = float(losses(x[None])[0]) if one_sided else 0.0
    result = []
    for low in range(0, len(chosen), _TOGETHER):
        entries, h = chosen[low : low + _TOGETHER], steps[low : low + _TOGETHER]
        above = losses(_moved(x, entries, h))
        below = np.full(len(h), fx) if one_sided else losses(_moved(x, entries, -h))
        result.append((above - below) / (h if one_sided else 2 * h))
        calls += len(h) if one_sided else 2 * len(h)
    return np.concatenate(result), calls


def _moved(x: Floats, entries: Ints, steps: Floats) -> Floats:
    """Copies of x, each with another entry moved by a step."""
    copies = np.repeat(x[None], len(entries), axis=0)
    copies.reshape(len(entries), -1)[np.arange(len(entries)), entries] += steps
    return copies


def steps_without_kinks(scores: Floats, labels: Ints, features: Floats, h: float) -> Floats:
    """For each entry of W the largest of h, h/2, h/4, ... within which no hinge has its kink.

    A step of h along W_cd moves the score of class c of example i by h x_id, and with it the
    margins of class c (or, if c is the label, all margins of the example). None of them may
    reach 0: there the SVM loss has no derivative, and differences across it are of no use.

    Args:
        scores: s, shape (examples, classes).
        labels: y, shape (examples,).
        features: X, shape (examples, columns).
        h: the step to begin with.

    Returns:
        shape (classes, columns).

    Source: CS231n notes, "Neural networks 3", gradient checks: kinks in the objective.
    """
    rows = np.arange(len(labels))
    margins = np.abs(scores - scores[rows, labels][:, None] + 1)
    margins[rows, labels] = np.inf
    margins[rows, labels] = margins.min(axis=1)  # the label's score moves all of them
    steps = np.empty((scores.shape[1], features.shape[1]))
    sizes = np.abs(features)
    for label in range(scores.shape[1]):
        with np.errstate(divide="ignore"):
            steps[label] = (margins[:, label, None] / sizes).min(axis=0)
    # Strictly within, with a part in 1,000 for rounding.
    halvings = np.maximum(0, np.ceil(np.log2(h / (0.999 * steps))))
    return h * 0.5**halvings
