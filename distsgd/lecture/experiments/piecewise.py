"""The shape of the losses: piecewise linear, convex or not.

- `hinges`: the SVM loss of three points on a line and three classes, term by term, as a function
  of w0.
- `check_convexity`: the loss along straight lines between two W.

Source: CS231n notes, "Optimization", visualising the loss function.

A function is convex if on every segment it lies below the chord. The losses of a linear score
function are; those of a network with a hidden layer are not, since exchanging two hidden units
changes nothing: both ends of such a segment are equally good, and the middle is another network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.model import LOSSES
from distsgd.core.model.losses import svm
from distsgd.core.model.reference import loss_and_gradient
from distsgd.data.dataset import open_dataset
from distsgd.errors import UsageError
from distsgd.figures.drawn import new_figure
from distsgd.lecture.material import Examples, check_limit, first_examples, loss_of
from distsgd.spelling import spelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Convexity",
    "Hinge",
    "Hinges",
    "Kink",
    "Segment",
    "check_convexity",
    "draw_convexity",
    "draw_hinges",
    "excess",
    "hinges",
    "loss_at",
]


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
        raise UsageError(f"{spelled('points')} must be three numbers, not all 0", "As 1,-0.5,2")
    if len(weights) != 2 or not np.isfinite(weights).all():
        raise UsageError(f"{spelled('weights')} must be two numbers", "As 0.5,-1")
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


def draw_hinges(result: Hinges) -> Figure:
    """The six terms above, their mean below, with its kinks."""
    figure = new_figure(7, 5.4)
    above, below = figure.subplots(2, 1, sharex=True)
    places = [kink.w0 for kink in result.kinks]
    w0 = _places(result.kinks, 400)
    for term in result.terms:
        style = ":" if not term.slope else "-"
        above.plot(w0, term(w0), style, label=f"point {term.example}, class {term.other}")
    above.set(ylabel="hinges")
    above.legend(fontsize=8, ncols=2)
    below.plot(w0, sum(term(w0) for term in result.terms) / 3, color="black")
    below.plot(places, [kink.loss for kink in result.kinks], "o", color="C3", label="kinks")
    below.set(xlabel="w0", ylabel="loss: their sum / 3")
    below.legend(fontsize=8)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


_SHARES = np.linspace(0, 1, 21)
_HIDDEN = 8


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The loss from one W to another.

    Attributes:
        model: "linear" or "two layers".
        loss: "svm" or "softmax".
        shares: of the way, from 0 to 1.
        losses: there.
        excess: the most that the loss lies above its chord, relative to the larger end; at most
            rounding for a convex function.
    """

    model: str
    loss: str
    shares: tuple[float, ...]
    losses: tuple[float, ...]
    excess: float


@dataclass(frozen=True, kw_only=True)
class Convexity:
    """What was found.

    Attributes:
        examples: images that losses are means over.
        segments: random segments for each loss.
        worst_linear: the largest excess on any segment of the linear score function.
        shown: the segment with the largest excess, for each loss and each model.
    """

    examples: int
    segments: int
    worst_linear: float
    shown: tuple[Segment, ...]

    @property
    def least_two_layers(self) -> float:
        """The smaller of the two losses' largest excess with two layers."""
        return min(one.excess for one in self.shown if one.model != "linear")


def excess(losses: Floats, shares: Floats) -> float:
    """max over t of L(t) - ((1 - t) L(0) + t L(1)), relative to the larger of |L(0)| and |L(1)|.

    Absolute where both are 0, as an SVM loss of few examples can be.
    """
    chord = (1 - shares) * losses[0] + shares * losses[-1]
    return float((losses - chord).max() / (max(abs(losses[0]), abs(losses[-1])) or 1.0))


def check_convexity(
    dataset: str = "cifar10", *, examples: int = 200, segments: int = 50, seed: int = 0
) -> Convexity:
    """Look for a segment on which the loss lies above its chord.

    Args:
        dataset: where the images come from.
        examples: how many of its first training images.
        segments: random segments for each loss, W being randn times 0.001 to 1.
        seed: of the segments.

    Raises:
        UsageError: an argument cannot be used.
    """
    opened = open_dataset(dataset)
    check_limit("examples", examples, len(opened.train))
    check_limit("segments", segments, 1_000_000)
    result = first_examples(opened, "train", examples, scale=64.0)
    rng = np.random.default_rng(seed)
    worst, shown = -np.inf, []
    for loss in LOSSES:
        every = [_linear_segment(result, loss, rng) for _ in range(segments)]
        most = max(every, key=lambda segment: segment.excess)
        worst = max(worst, most.excess)
        shown += [most, _permuted_network_segment(result, loss, rng)]
    return Convexity(
        examples=examples, segments=segments, worst_linear=float(worst), shown=tuple(shown)
    )


def _along(
    model: str, loss: str, ends: tuple[Floats, Floats], measure: Callable[[Floats], float]
) -> Segment:
    losses = np.array([measure((1 - t) * ends[0] + t * ends[1]) for t in _SHARES])
    return Segment(
        model=model, loss=loss, shares=tuple(_SHARES.tolist()), losses=tuple(losses.tolist()),
        excess=excess(losses, _SHARES),
    )  # fmt: skip


def _linear_segment(examples: Examples, loss: str, rng: np.random.Generator) -> Segment:
    scale = 10 ** rng.uniform(-3, 0)
    ends = rng.standard_normal((2, *examples.shape)) * scale
    return _along("linear", loss, (ends[0], ends[1]), lambda w: loss_of(w, examples, loss))


def _permuted_network_segment(examples: Examples, loss: str, rng: np.random.Generator) -> Segment:
    """From a network that has learnt a little to itself with its hidden units exchanged."""
    classes, columns = examples.shape
    w1 = rng.standard_normal((_HIDDEN, columns)) * np.sqrt(2 / columns)
    w2 = rng.standard_normal((classes, _HIDDEN + 1)) * np.sqrt(2 / _HIDDEN)
    for _ in range(30):
        _, (by_w1, by_w2) = loss_and_gradient([w1, w2], examples.features, examples.labels, loss)
        w1, w2 = w1 - 0.01 * by_w1, w2 - 0.01 * by_w2
    order = np.r_[1:_HIDDEN, 0]
    other = w1[order], np.hstack([w2[:, :-1][:, order], w2[:, -1:]])
    cut = w1.size

    def measure(flat: Floats) -> float:
        one, two = flat[:cut].reshape(w1.shape), flat[cut:].reshape(w2.shape)
        return loss_and_gradient([one, two], examples.features, examples.labels, loss)[0]

    ends = tuple(np.concatenate([a.reshape(-1), b.reshape(-1)]) for a, b in ((w1, w2), other))
    return _along("two layers", loss, (ends[0], ends[1]), measure)


def draw_convexity(result: Convexity) -> Figure:
    """The loss along the segments, with their chords."""
    figure = new_figure(8, 3.6)
    for axes, model in zip(figure.subplots(1, 2), ("linear", "two layers"), strict=True):
        for number, segment in enumerate(one for one in result.shown if one.model == model):
            losses = np.array(segment.losses) / (segment.losses[0] or 1.0)
            axes.plot(segment.shares, losses, color=f"C{number}", label=segment.loss)
            axes.plot([0, 1], losses[[0, -1]], "--", color=f"C{number}", linewidth=0.8)
        axes.set(title=model, xlabel="share of the way", ylabel="loss / loss at the start")
        axes.legend()
        axes.grid(alpha=0.3)
    return figure
