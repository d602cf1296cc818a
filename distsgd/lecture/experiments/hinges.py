"""The SVM loss is piecewise linear: three points on a line, three classes, term by term.

Source: CS231n notes, "Optimization", visualising the loss function: L as a function of w0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.model.losses import svm
from distsgd.errors import UsageError
from distsgd.lecture.drawing import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Hinge", "Hinges", "Kink", "draw_hinges", "hinges", "loss_at"]

POINTS = (1.0, -0.5, 2.0)
WEIGHTS = (0.5, -1.0)


@dataclass(frozen=True, kw_only=True)
class Hinge:
    """max(0, slope * w0 + intercept), one term of the loss of one example.

    Attributes:
        example: i, from 0.
        other: j, the class that is compared with the label.
        slope: with respect to w0.
        intercept: at w0 = 0.
        kink: w0 where it reaches 0: -intercept / slope; None if it does not depend on w0.
    """

    example: int
    other: int
    slope: float
    intercept: float
    kink: float | None

    def __call__(self, w0: Floats) -> Floats:
        """Its value."""
        value: Floats = np.maximum(0, self.slope * w0 + self.intercept)
        return value


@dataclass(frozen=True, kw_only=True)
class Kink:
    """Where the loss has no derivative.

    Attributes:
        w0: where.
        loss: there.
        left: slope of the loss to the left of it.
        right: to the right; every number between the two is a subgradient.
        used: the one that training uses: that of a hinge at its kink is taken to be 0.
    """

    w0: float
    loss: float
    left: float
    right: float
    used: float


@dataclass(frozen=True, kw_only=True)
class Hinges:
    """L(w0) = 1/3 sum_i sum_{j != y_i} max(0, w_j x_i - w_{y_i} x_i + 1), with y_i = i.

    Attributes:
        points: x_i.
        weights: w1 and w2, which stay.
        terms: all six of them.
        kinks: from left to right.
        lowest: w0 of the smallest loss (it lies at a kink).
        terms_difference: the most that the sum of the terms is off the loss by the formula that
            training uses, around the kinks.
        slopes_difference: the most that the slopes beside the kinks are off differences of it.
    """

    points: tuple[float, ...]
    weights: tuple[float, ...]
    terms: tuple[Hinge, ...]
    kinks: tuple[Kink, ...]
    lowest: float
    terms_difference: float
    slopes_difference: float


def hinges(points: Sequence[float] = POINTS, weights: Sequence[float] = WEIGHTS) -> Hinges:
    """Take the loss apart; kinks are found by solving slope * w0 + intercept = 0.

    Args:
        points: x_0, x_1, x_2, of the classes 0, 1, 2; without bias.
        weights: w1 and w2.

    Raises:
        UsageError: there are not three and two of them, or no term depends on w0.
    """
    if len(points) != 3 or not np.isfinite(points).all() or not np.any(points):
        raise UsageError("--points must be three numbers, not all 0", "As 1,-0.5,2")
    if len(weights) != 2 or not np.isfinite(weights).all():
        raise UsageError("--weights must be two numbers", "As 0.5,-1")
    points, weights = tuple(points), tuple(weights)
    terms = []
    for i, x in enumerate(points):
        for j in range(3):
            if j == i:
                continue
            slope = x * ((j == 0) - (i == 0)) + 0.0  # not -0
            fixed = (0.0, *weights)
            intercept = fixed[j] * x - fixed[i] * x + 1
            terms.append(
                Hinge(example=i, other=j, slope=slope, intercept=intercept,
                      kink=-intercept / slope if slope else None)
            )  # fmt: skip
    where = sorted({term.kink for term in terms if term.kink is not None})
    kinks = tuple(_kink(w0, terms, points, weights) for w0 in where)
    lowest = min(kinks, key=lambda kink: kink.loss).w0
    places = _places(kinks, 801)
    total = sum(term(places) for term in terms) / 3
    by_formula = np.array([loss_at(w0, points, weights) for w0 in places])
    return Hinges(
        points=points, weights=weights, terms=tuple(terms), kinks=kinks, lowest=lowest,
        terms_difference=float(np.abs(total - by_formula).max()),
        slopes_difference=_off_differences(kinks, points, weights),
    )  # fmt: skip


def _places(kinks: Sequence[Kink], count: int) -> Floats:
    """w0 from left of all kinks to right of them, evenly."""
    first, last = kinks[0].w0, kinks[-1].w0
    margin = 0.35 * (last - first or 1.0)
    return np.linspace(first - margin, last + margin, count)


def _off_differences(
    kinks: Sequence[Kink], points: tuple[float, ...], weights: tuple[float, ...]
) -> float:
    """Slopes on both sides of every kink against differences of the loss."""
    gaps = [b.w0 - a.w0 for a, b in pairwise(kinks)]
    off, h = 0.0, max(1e-9, min([1e-4, *(gap / 2 for gap in gaps)]))
    for kink in kinks:
        for side, slope in ((-1, kink.left), (1, kink.right)):
            near_by = loss_at(kink.w0 + side * h, points, weights)
            off = max(off, abs(side * (near_by - kink.loss) / h - slope))
    return off


def loss_at(w0: float, points: tuple[float, ...], weights: tuple[float, ...]) -> float:
    """The loss by the formula that training uses, which knows of no terms."""
    scores = np.outer(points, (w0, *weights))
    return float(svm(scores, np.arange(3), np.empty_like(scores)).mean())


def _kink(
    w0: float, terms: list[Hinge], points: tuple[float, ...], weights: tuple[float, ...]
) -> Kink:
    left = right = used = loss = 0.0
    for term in terms:
        value = term.slope * w0 + term.intercept
        at_kink = term.kink is not None and abs(term.kink - w0) < 1e-12
        if at_kink:
            left += min(term.slope, 0.0) / 3
            right += max(term.slope, 0.0) / 3
        elif value > 0:
            left, right = left + term.slope / 3, right + term.slope / 3
            used, loss = used + term.slope / 3, loss + value / 3
    return Kink(w0=w0, loss=loss, left=left, right=right, used=used)


def draw_hinges(found: Hinges) -> Figure:
    """The six terms above, their mean below, with its kinks."""
    figure = new_figure(7, 5.4)
    above, below = figure.subplots(2, 1, sharex=True)
    places = [kink.w0 for kink in found.kinks]
    w0 = _places(found.kinks, 400)
    for term in found.terms:
        style = ":" if not term.slope else "-"
        above.plot(w0, term(w0), style, label=f"point {term.example}, class {term.other}")
    above.set(ylabel="hinges")
    above.legend(fontsize=8, ncols=2)
    below.plot(w0, sum(term(w0) for term in found.terms) / 3, color="black")
    below.plot(places, [kink.loss for kink in found.kinks], "o", color="C3", label="kinks")
    below.set(xlabel="w0", ylabel="loss: their sum / 3")
    below.legend(fontsize=8)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure
