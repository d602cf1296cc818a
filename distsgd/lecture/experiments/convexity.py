"""Convex or not: the loss along straight lines between two W.

A function is convex if on every segment it lies below the chord. The losses of a linear score
function are; those of a network with a hidden layer are not, since exchanging two hidden units
changes nothing: both ends of such a segment are equally good, and the middle is another network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.model import LOSSES
from distsgd.core.model.reference import loss_and_gradient
from distsgd.data.dataset import open_dataset
from distsgd.lecture.drawing import new_figure
from distsgd.lecture.material import Examples, check_limit, first_examples
from distsgd.lecture.objective import loss_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Convexity", "Segment", "check_convexity", "draw_convexity", "excess"]

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
    check_limit("--examples", examples, len(opened.train))
    check_limit("--segments", segments, 1_000_000)
    found = first_examples(opened, "train", examples, scale=64.0)
    rng = np.random.default_rng(seed)
    worst, shown = -np.inf, []
    for loss in LOSSES:
        every = [_linear(found, loss, rng) for _ in range(segments)]
        most = max(every, key=lambda segment: segment.excess)
        worst = max(worst, most.excess)
        shown += [most, _exchanged(found, loss, rng)]
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


def _linear(examples: Examples, loss: str, rng: np.random.Generator) -> Segment:
    scale = 10 ** rng.uniform(-3, 0)
    ends = rng.standard_normal((2, *examples.shape)) * scale
    return _along("linear", loss, (ends[0], ends[1]), lambda w: loss_of(w, examples, loss))


def _exchanged(examples: Examples, loss: str, rng: np.random.Generator) -> Segment:
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


def draw_convexity(found: Convexity) -> Figure:
    """The loss along the segments, with their chords."""
    figure = new_figure(8, 3.6)
    for axes, model in zip(figure.subplots(1, 2), ("linear", "two layers"), strict=True):
        for number, segment in enumerate(one for one in found.shown if one.model == model):
            losses = np.array(segment.losses) / (segment.losses[0] or 1.0)
            axes.plot(segment.shares, losses, color=f"C{number}", label=segment.loss)
            axes.plot([0, 1], losses[[0, -1]], "--", color=f"C{number}", linewidth=0.8)
        axes.set(title=model, xlabel="share of the way", ylabel="loss / loss at the start")
        axes.legend()
        axes.grid(alpha=0.3)
    return figure
