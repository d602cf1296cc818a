"""Why minibatches work: the gradient of a few examples is near that of all.

- `compare_copies`: if 1.2 million images are copies of 1,000, the gradient over all is the
  gradient over the 1,000, at a thousandth of the work. Real images are not copies, but alike.
- `minibatch_noise`: how near a minibatch's gradient comes to that of all examples, by size.

Source: CS231n notes, "Optimization", minibatch gradient descent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model import LOSSES
from distsgd.data.dataset import open_dataset
from distsgd.engine.blas import one_blas_thread
from distsgd.errors import UsageError
from distsgd.figures.drawn import new_figure
from distsgd.lecture.material import (
    Examples,
    check_limit,
    check_loss,
    first_examples,
    loss_and_gradient,
)
from distsgd.spelling import spelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Copies",
    "CopiesRow",
    "MinibatchNoise",
    "NoiseRow",
    "compare_copies",
    "draw_copies",
    "draw_minibatch_noise",
    "gradient_over_copies",
    "minibatch_noise",
]


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
    """dL/dW over a training set of shuffled copies of the originals.

    Every one of its examples is scored and differentiated; nothing knows that they are copies.

    Args:
        weights: W, shape (classes, columns), float64.
        originals: the different examples.
        times: copies of each.
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
        times: copies of each.
        seed: of W and of the order.

    Raises:
        UsageError: an argument cannot be used.
    """
    opened = open_dataset(dataset)
    check_limit("originals", originals, len(opened.train))
    check_limit("times", times, 100_000)
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


def draw_copies(result: Copies) -> Figure:
    """The time that each gradient took; they are the same gradient."""
    figure = new_figure(7, 2.6)
    axes = figure.subplots()
    names = [row.loss for row in result.rows]
    places = np.arange(len(names))
    for shift, label, seconds in (
        (-0.2, f"all {result.examples:,}", [row.seconds_all for row in result.rows]),
        (
            0.2,
            f"the {result.originals:,} originals",
            [row.seconds_originals for row in result.rows],
        ),
    ):
        axes.barh(places + shift, seconds, 0.36, label=label)
    axes.set(yticks=places, yticklabels=names, xscale="log", xlabel="seconds for one gradient")
    axes.legend()
    return figure


SIZES = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, kw_only=True)
class NoiseRow:
    """Minibatches of one size.

    Attributes:
        batch_size: B, examples of a minibatch.
        cosine: mean cosine between a minibatch's gradient and the full one.
        cosine_spread: standard deviation of it.
        variance: mean of |g_B - g|**2, relative to |g|**2.
        expected_variance: sigma**2 / B * (N - B) / (N - 1), with sigma**2 the variance of the
            examples' gradients: what drawing without replacement must give.
    """

    batch_size: int
    cosine: float
    cosine_spread: float
    variance: float
    expected_variance: float


@dataclass(frozen=True, kw_only=True)
class MinibatchNoise:
    """The experiment.

    Attributes:
        loss: "softmax" or "svm".
        examples: N, examples of the full gradient.
        draws: minibatches of each size.
        rows: one for each size.
    """

    loss: str
    examples: int
    draws: int
    rows: tuple[NoiseRow, ...]

    @property
    def variance_ratio(self) -> float:
        """Mean over the sizes of the variance over what is expected.

        Without that of all examples, which has none; NaN if there is no other.
        """
        ratios = [
            one.variance / one.expected_variance for one in self.rows if one.expected_variance
        ]
        return sum(ratios) / len(ratios) if ratios else math.nan


def minibatch_noise(
    dataset: str = "cifar10",
    *,
    loss: str = "softmax",
    sizes: Sequence[int] = SIZES,
    draws: int = 100,
    examples: int | None = None,
    seed: int = 0,
) -> MinibatchNoise:
    """Draw minibatches of each size and compare their gradients with that of all examples.

    Args:
        dataset: where the examples come from.
        loss: "softmax" or "svm".
        sizes: of the minibatches.
        draws: minibatches of each size.
        examples: N; None for the whole training set.
        seed: of W (about 1e-4, as at the start of a training) and of the draws.

    Raises:
        UsageError: an argument cannot be used, or a minibatch is larger than the set.
    """
    check_loss(loss)
    if not sizes:
        raise UsageError(f"{spelled('sizes')} is empty", "Give sizes of minibatches, as 16,64,256")
    check_limit("draws", draws, 100_000, least=2)
    result = first_examples(open_dataset(dataset), "train", examples, scale=64.0, dtype="float32")
    for size in sizes:
        check_limit("sizes", size, len(result))
    rng = np.random.default_rng(seed)
    weights = (rng.standard_normal(result.shape) * 1e-4).astype(np.float32)
    with one_blas_thread():
        by_score = _score_gradients(weights, result, loss)
        full = _mean_gradient(by_score, result, np.arange(len(result)))
        spread = _variance_of_examples(by_score, result, full)
        rows = tuple(_row(by_score, result, full, spread, size, draws, rng) for size in sizes)
    return MinibatchNoise(loss=loss, examples=len(result), draws=draws, rows=rows)


def _score_gradients(weights: Floats, examples: Examples, loss: str) -> Floats:
    """dL_i/ds of every example, shape (examples, classes)."""
    scores = examples.features @ weights.T
    by_score = np.empty_like(scores)
    LOSSES[loss](scores, examples.labels, by_score)
    return by_score


def _mean_gradient(by_score: Floats, examples: Examples, batch: Ints) -> Floats:
    """1/B sum over the batch of (dL_i/ds) x_i', float64."""
    if len(batch) == len(examples):
        product = by_score.T @ examples.features
    else:
        product = by_score[batch].T @ examples.features[batch]
    return product.astype(np.float64) / len(batch)


def _variance_of_examples(by_score: Floats, examples: Examples, full: Floats) -> float:
    """sigma**2 = 1/N sum_i |g_i - g|**2; |g_i| is |dL_i/ds| |x_i|, for g_i is an outer product."""
    squares = np.einsum("ij,ij->i", by_score, by_score, dtype=np.float64) * np.einsum(
        "ij,ij->i", examples.features, examples.features, dtype=np.float64
    )
    return float(squares.mean() - np.sum(full * full))


def _row(
    by_score: Floats, examples: Examples, full: Floats, spread: float,
    size: int, draws: int, rng: np.random.Generator,
) -> NoiseRow:  # fmt: skip
    length = float(np.linalg.norm(full)) or 1.0  # 0 only where all else is
    cosines, distances = np.empty(draws), np.empty(draws)
    for draw in range(draws):
        batch = rng.choice(len(examples), size, replace=False)
        gradient = _mean_gradient(by_score, examples, batch)
        cosines[draw] = np.sum(gradient * full) / ((np.linalg.norm(gradient) or 1.0) * length)
        distances[draw] = np.sum((gradient - full) ** 2)
    rest = (len(examples) - size) / max(1, len(examples) - 1)
    return NoiseRow(
        batch_size=size,
        cosine=float(cosines.mean()),
        cosine_spread=float(cosines.std()),
        variance=float(distances.mean()) / length**2,
        expected_variance=spread / size * rest / length**2,
    )


def draw_minibatch_noise(result: MinibatchNoise) -> Figure:
    """Cosine to the full gradient, and relative variance, against the size."""
    figure = new_figure(8, 3.6)
    cosine, variance = figure.subplots(1, 2)
    sizes = [row.batch_size for row in result.rows]
    cosine.errorbar(
        sizes, [row.cosine for row in result.rows], [row.cosine_spread for row in result.rows],
        marker="o", capsize=3,
    )  # fmt: skip
    cosine.set(xlabel="minibatch size", ylabel="cosine to the full gradient", ylim=(None, 1.02))
    variance.plot(sizes, [row.variance for row in result.rows], "o", label="measured")
    variance.plot(sizes, [row.expected_variance for row in result.rows], "--", label="sigma² / B")
    variance.set(xlabel="minibatch size", ylabel="|g_B - g|² / |g|²", yscale="log")
    variance.legend()
    for axes in (cosine, variance):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
        axes.grid(alpha=0.3)
    return figure
