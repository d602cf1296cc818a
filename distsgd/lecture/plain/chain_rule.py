"""The chain rule, from numbers to Jacobians, with worked examples that check themselves.

Source: CS231n notes, "Backpropagation, intuitions".

The gradients of both losses, formula by formula, for one example.

With x of shape (columns,), its scores s = W x of shape (classes,) and its label y. The fast ones,
for many examples at once, are `distsgd.core.model.losses` and `distsgd.core.model.slot_gradient`.

Source: CS231n notes, "Optimization", computing the gradient analytically; "Linear classification".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import exp

import numpy as np

from distsgd.core.arrays import Floats, Ints
from distsgd.lecture.plain.loops import central_gradient

__all__ = [
    "EXAMPLE_GRADIENT",
    "EXAMPLE_LOSS",
    "GRADIENT_BY_SCORES",
    "ChainRule",
    "WorkedExample",
    "chain_through_jacobian",
    "mean_gradient",
    "probabilities",
    "score",
    "softmax_gradient_by_scores",
    "softmax_jacobian",
    "svm_margins",
    "worked_examples",
]


def chain(dz_dy: float, dy_dx: float) -> float:
    """dz/dx = dz/dy * dy/dx, for z = f(y), y = g(x)."""
    return dz_dy * dy_dx


def chain_over_paths(paths: Iterable[tuple[float, float]]) -> float:
    """dz/dx = sum over u of dz/du * du/dx: where x reaches z by several ways, they add up."""
    return sum(chain(dz_du, du_dx) for dz_du, du_dx in paths)


def chain_through_jacobian(dz_dy: Floats, jacobian: Floats) -> Floats:
    """dz/dx = J' dz/dy with J_jk = dy_j/dx_k: the several paths of vectors, all at once.

    Args:
        dz_dy: shape (outputs,).
        jacobian: shape (outputs, inputs).
    """
    product: Floats = jacobian.T @ dz_dy
    return product


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + exp(-x))


def sigmoid_derivative(value: float) -> float:
    """d sigmoid/dx = (1 - sigmoid) * sigmoid, from the value of the sigmoid."""
    return (1 - value) * value


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A node of a computation.

    Attributes:
        name: what it is called.
        value: on the way forward.
        gradient: of the result with respect to it, on the way back, by the chain rule.
        numerical: likewise by central differences; None for what is in between.
    """

    name: str
    value: float
    gradient: float
    numerical: float | None


@dataclass(frozen=True, kw_only=True)
class WorkedExample:
    """A computation, forward and back.

    Attributes:
        name: of the example.
        formula: what is computed.
        quantities: inputs first, the result last.
        edges: from the name of a quantity to that of another that is computed with it.
        largest_difference: between chain rule and central differences.
    """

    name: str
    formula: str
    quantities: tuple[Quantity, ...]
    edges: tuple[tuple[str, str], ...]
    largest_difference: float


@dataclass(frozen=True, kw_only=True)
class ChainRule:
    """All worked examples.

    Attributes:
        examples: from numbers to vectors.
        largest_difference: between chain rule and central differences, over all of them.
        softmax_difference: the most that the slopes through softmax are off p - 1(j = y).
    """

    examples: tuple[WorkedExample, ...]
    largest_difference: float
    softmax_difference: float


def _worked(
    name: str, formula: str, inputs: dict[str, tuple[float, float]],
    between: dict[str, tuple[float, float]], edges: str, function: Callable[[Floats], float],
) -> WorkedExample:  # fmt: skip
    at = np.array([value for value, _ in inputs.values()], dtype=float)
    numerical = central_gradient(function, at)
    quantities = [
        Quantity(name=key, value=value, gradient=slope, numerical=float(number))
        for (key, (value, slope)), number in zip(inputs.items(), numerical, strict=True)
    ]
    quantities += [
        Quantity(name=key, value=value, gradient=slope, numerical=None)
        for key, (value, slope) in between.items()
    ]
    off = max(abs(one.gradient - (one.numerical or 0.0)) for one in quantities[: len(inputs)])
    pairs = [edge.split(">") for edge in edges.split()]
    return WorkedExample(
        name=name, formula=formula, quantities=tuple(quantities), largest_difference=off,
        edges=tuple((start, end) for start, end in pairs),
    )  # fmt: skip


def product_of_sum(x: float = -2, y: float = 5, z: float = -4) -> WorkedExample:
    """f = (x + y) z: df/dz = q, df/dq = z with q = x + y, and dq/dx = dq/dy = 1."""
    q = x + y
    return _worked(
        "product of a sum", "q = x + y, f = q z",
        {"x": (x, chain(z, 1)), "y": (y, chain(z, 1)), "z": (z, q)},
        {"q": (q, z), "f": (q * z, 1)},
        "x>q y>q q>f z>f",
        lambda v: float((v[0] + v[1]) * v[2]),
    )  # fmt: skip


def neuron(
    w: tuple[float, float, float] = (2, -3, -3), x: tuple[float, float] = (-1, -2)
) -> WorkedExample:
    """f = sigmoid(w0 x0 + w1 x1 + w2)."""
    dot = w[0] * x[0] + w[1] * x[1] + w[2]
    f = sigmoid(dot)
    slope = sigmoid_derivative(f)
    inputs = {"w0": (w[0], x[0]), "x0": (x[0], w[0]), "w1": (w[1], x[1]), "x1": (x[1], w[1]),
              "w2": (w[2], 1.0)}  # fmt: skip
    return _worked(
        "a neuron", "q = w0 x0 + w1 x1 + w2, f = sigmoid(q)",
        {name: (value, chain(slope, inner)) for name, (value, inner) in inputs.items()},
        {"q": (dot, slope), "f": (f, 1)},
        "w0>q x0>q w1>q x1>q w2>q q>f",
        lambda v: sigmoid(float(v[0] * v[1] + v[2] * v[3] + v[4])),
    )  # fmt: skip


def two_paths(x: float = 2, y: float = -3) -> WorkedExample:
    """f = u v with u = x + y, v = x y: x and y reach f by both u and v."""
    u, v = x + y, x * y
    return _worked(
        "two paths", "u = x + y, v = x y, f = u v",
        {"x": (x, chain_over_paths([(v, 1), (u, y)])),
         "y": (y, chain_over_paths([(v, 1), (u, x)]))},
        {"u": (u, v), "v": (v, u), "f": (u * v, 1)},
        "x>u y>u x>v y>v u>f v>f",
        lambda a: float((a[0] + a[1]) * (a[0] * a[1])),
    )  # fmt: skip


def softmax_and_log(scores: tuple[float, ...] = (3.2, 5.1, -1.7), label: int = 0) -> WorkedExample:
    """L = -log p_y, p = softmax(s): dL/ds = J' dL/dp, which comes to p - 1(j = y)."""

    s = np.array(scores)
    p = probabilities(s)
    slopes = chain_through_jacobian(cross_entropy_by_probability(p, label), softmax_jacobian(p))
    by_p = cross_entropy_by_probability(p, label)
    return _worked(
        "softmax, then the logarithm", "L = -log p_y, p = exp(s) / sum exp(s)",
        {f"s{k}": (float(s[k]), float(slopes[k])) for k in range(len(s))},
        {**{f"p{k}": (float(p[k]), float(by_p[k])) for k in range(len(s))},
         "L": (float(-np.log(p[label])), 1)},
        " ".join(f"s{k}>p{j}" for k in range(len(s)) for j in range(len(s))) + f" p{label}>L",
        lambda v: float(-np.log(probabilities(v)[label])),
    )  # fmt: skip


EXAMPLES = (product_of_sum, neuron, two_paths, softmax_and_log)


def worked_examples() -> ChainRule:
    """All of them, with the numbers of the lecture."""
    examples = tuple(example() for example in EXAMPLES)
    last = examples[-1].quantities
    slopes = [one.gradient for one in last if one.name.startswith("s")]
    shares = [one.value for one in last if one.name.startswith("p")]
    expected = [share - (k == 0) for k, share in enumerate(shares)]  # label 0
    return ChainRule(
        examples=examples,
        largest_difference=max(one.largest_difference for one in examples),
        softmax_difference=max(abs(a - b) for a, b in zip(slopes, expected, strict=True)),
    )


DELTA = 1.0


def score(weights: Floats, x: Floats) -> Floats:
    """s = W x, shape (classes,)."""
    s: Floats = weights @ x
    return s


def svm_margins(s: Floats, y: int) -> Floats:
    """m_j = s_j - s_y + 1 for j != y, and 0 for j = y, where there is no term."""
    margins: Floats = s - s[y] + DELTA
    margins[y] = 0
    return margins


def svm_example_loss(s: Floats, y: int) -> float:
    """L_i = sum over j != y of max(0, s_j - s_y + 1)."""
    return float(np.maximum(0, svm_margins(s, y)).sum())


def svm_correct_class_gradient(s: Floats, y: int, x: Floats) -> Floats:
    """dL_i/dw_y = -(sum over j != y of 1(s_j - s_y + 1 > 0)) x_i."""
    row: Floats = -float(np.count_nonzero(svm_margins(s, y) > 0)) * x
    return row


def svm_other_class_gradient(s: Floats, y: int, j: int, x: Floats) -> Floats:
    """dL_i/dw_j = 1(s_j - s_y + 1 > 0) x_i for j != y; at a kink the subgradient 0."""
    row: Floats = float(svm_margins(s, y)[j] > 0) * x
    return row


def svm_example_gradient(s: Floats, y: int, x: Floats) -> Floats:
    """dL_i/dW: the two formulas, a row for each class."""
    return np.stack([
        svm_correct_class_gradient(s, y, x) if j == y else svm_other_class_gradient(s, y, j, x)
        for j in range(len(s))
    ])  # fmt: skip


def svm_gradient_by_scores(s: Floats, y: int) -> Floats:
    """dL_i/ds: the two formulas for x_i = 1, as s_j = w_j x_i."""
    return svm_example_gradient(s, y, np.ones(1))[:, 0]


def probabilities(s: Floats) -> Floats:
    """p_j = exp(s_j) / sum_k exp(s_k); the largest score is subtracted first."""
    powers = np.exp(s - s.max())
    p: Floats = powers / powers.sum()
    return p


def softmax_example_loss(s: Floats, y: int) -> float:
    """L_i = -log p_y = -s_y + log sum_j exp(s_j)."""
    return float(s.max() + np.log(np.exp(s - s.max()).sum()) - s[y])


def softmax_jacobian(p: Floats) -> Floats:
    """dp_j/ds_k = p_j (1(j = k) - p_k), shape (classes, classes)."""
    return np.diag(p) - np.outer(p, p)


def cross_entropy_by_probability(p: Floats, y: int) -> Floats:
    """dL_i/dp_j = -1(j = y) / p_y."""
    slopes = np.zeros_like(p)
    slopes[y] = -1 / p[y]
    return slopes


def softmax_gradient_by_scores(s: Floats, y: int) -> Floats:
    """dL_i/ds = J' dL_i/dp, by the chain rule; it comes to p_j - 1(j = y)."""
    p = probabilities(s)
    return chain_through_jacobian(cross_entropy_by_probability(p, y), softmax_jacobian(p))


def softmax_example_gradient(s: Floats, y: int, x: Floats) -> Floats:
    """dL_i/dW = (dL_i/ds) x_i', as ds_j/dw_j = x_i."""
    by_w: Floats = np.outer(softmax_gradient_by_scores(s, y), x)
    return by_w


EXAMPLE_LOSS = {"svm": svm_example_loss, "softmax": softmax_example_loss}
"""L_i of (s, y)."""
EXAMPLE_GRADIENT = {"svm": svm_example_gradient, "softmax": softmax_example_gradient}
"""dL_i/dW of (s, y, x)."""
GRADIENT_BY_SCORES = {"svm": svm_gradient_by_scores, "softmax": softmax_gradient_by_scores}
"""dL_i/ds of (s, y)."""


def mean_gradient(weights: Floats, features: Floats, labels: Ints, loss: str) -> Floats:
    """dL/dW = 1/n sum_i dL_i/dW, example by example."""
    total = np.zeros_like(weights)
    for x, y in zip(features, labels, strict=True):
        total += EXAMPLE_GRADIENT[loss](score(weights, x), int(y), x)
    return total / len(labels)
