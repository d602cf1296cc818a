"""Why minibatches work, a thought experiment: a training set that repeats itself.

If 1.2 million images are copies of 1,000, the gradient over all is the gradient over the 1,000,
at a thousandth of the work. Real images are not copies, but they are alike.

Source: CS231n notes, "Optimization", minibatch gradient descent.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distsgd.data.dataset import open_dataset
from distsgd.lecture.drawing import new_figure
from distsgd.lecture.material import Examples, check_limit, first_examples
from distsgd.lecture.objective import loss_and_gradient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from distsgd.core.arrays import Floats

__all__ = ["Copies", "CopiesRow", "compare_copies", "draw_copies", "gradient_over_copies"]

_CHUNK = 1_000


@dataclass(frozen=True, kw_only=True)
class CopiesRow:
    """One loss function.

    Attributes:
        loss: "softmax" or "svm".
        relative_difference: |gradient over all - over the originals| / |over the originals|.
        seconds_all: to compute the gradient over all.
        seconds_originals: over the originals alone.
    """

    loss: str
    relative_difference: float
    seconds_all: float
    seconds_originals: float


@dataclass(frozen=True, kw_only=True)
class Copies:
    """The experiment.

    Attributes:
        originals: different images.
        examples: images in all, in a shuffled order.
        rows: one for each loss.
    """

    originals: int
    examples: int
    rows: tuple[CopiesRow, ...]


def gradient_over_copies(
    weights: Floats, originals: Examples, times: int, loss: str, seed: int = 0
) -> Floats:
    """dL/dW over a training set in which each original occurs so many times, shuffled.

    Every one of its examples is scored and differentiated; nothing knows that they are copies.

    Args:
        weights: W, shape (classes, columns), float64.
        originals: the different examples.
        times: how often each occurs.
        loss: "softmax" or "svm".
        seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(len(originals) * times) % len(originals)
    total = np.zeros_like(weights)
    for low in range(0, len(order), _CHUNK):
        chunk = order[low : low + _CHUNK]
        _, mean = loss_and_gradient(
            weights, originals.features[chunk], originals.labels[chunk], loss
        )
        total += mean * len(chunk)
    return total / len(order)


def compare_copies(
    dataset: str = "cifar10", *, originals: int = 1_000, times: int = 1_200, seed: int = 0
) -> Copies:
    """Compare the gradient over all copies with that over the originals, for both losses.

    Args:
        dataset: where the originals come from.
        originals: how many.
        times: how often each occurs.
        seed: of W and of the order.

    Raises:
        UsageError: an argument cannot be used.
    """
    opened = open_dataset(dataset)
    check_limit("--originals", originals, len(opened.train))
    check_limit("--times", times, 100_000)
    examples = first_examples(opened, "train", originals)
    weights = np.random.default_rng(seed).standard_normal(examples.shape) * 1e-3
    rows = []
    for loss in ("svm", "softmax"):
        began = time.perf_counter()
        _, few = loss_and_gradient(weights, examples.features, examples.labels, loss)
        between = time.perf_counter()
        many = gradient_over_copies(weights, examples, times, loss, seed)
        rows.append(
            CopiesRow(
                loss=loss,
                relative_difference=float(
                    np.linalg.norm(many - few) / (np.linalg.norm(few) or 1.0)
                ),
                seconds_all=time.perf_counter() - between,
                seconds_originals=between - began,
            )
        )
    return Copies(originals=originals, examples=originals * times, rows=tuple(rows))


def draw_copies(found: Copies) -> Figure:
    """The time that each gradient took; they are the same gradient."""
    figure = new_figure(7, 2.6)
    axes = figure.subplots()
    names = [row.loss for row in found.rows]
    places = np.arange(len(names))
    for shift, label, seconds in (
        (-0.2, f"all {found.examples:,}", [row.seconds_all for row in found.rows]),
        (0.2, f"the {found.originals:,} originals", [row.seconds_originals for row in found.rows]),
    ):
        axes.barh(places + shift, seconds, 0.36, label=label)
    axes.set(yticks=places, yticklabels=names, xscale="log", xlabel="seconds for one gradient")
    axes.legend()
    return figure
