"""How near the gradient of a minibatch comes to that of all examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model import LOSSES
from distsgd.data.dataset import open_dataset
from distsgd.engine.blas import one_blas_thread
from distsgd.errors import UsageError
from distsgd.lecture.drawing import new_figure
from distsgd.lecture.material import Examples, check_limit, first_examples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MinibatchNoise", "NoiseRow", "draw_minibatch_noise", "minibatch_noise"]

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
    if loss not in LOSSES:
        raise UsageError(f"--loss cannot be {loss}", f"Give one of {', '.join(LOSSES)}")
    if not sizes:
        raise UsageError("--sizes is empty", "Give sizes of minibatches, as 16,64,256")
    check_limit("--draws", draws, 100_000, least=2)
    found = first_examples(open_dataset(dataset), "train", examples, scale=64.0, dtype="float32")
    for size in sizes:
        check_limit("--sizes", size, len(found))
    rng = np.random.default_rng(seed)
    weights = (rng.standard_normal(found.shape) * 1e-4).astype(np.float32)
    with one_blas_thread():
        by_score = _score_gradients(weights, found, loss)
        full = _mean_gradient(by_score, found, np.arange(len(found)))
        spread = _variance_of_examples(by_score, found, full)
        rows = tuple(_row(by_score, found, full, spread, size, draws, rng) for size in sizes)
    return MinibatchNoise(loss=loss, examples=len(found), draws=draws, rows=rows)


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


def draw_minibatch_noise(found: MinibatchNoise) -> Figure:
    """Cosine to the full gradient, and relative variance, against the size."""
    figure = new_figure(8, 3.6)
    cosine, variance = figure.subplots(1, 2)
    sizes = [row.batch_size for row in found.rows]
    cosine.errorbar(
        sizes, [row.cosine for row in found.rows], [row.cosine_spread for row in found.rows],
        marker="o", capsize=3,
    )  # fmt: skip
    cosine.set(xlabel="minibatch size", ylabel="cosine to the full gradient", ylim=(None, 1.02))
    variance.plot(sizes, [row.variance for row in found.rows], "o", label="measured")
    variance.plot(sizes, [row.expected_variance for row in found.rows], "--", label="sigma² / B")
    variance.set(xlabel="minibatch size", ylabel="|g_B - g|² / |g|²", yscale="log")
    variance.legend()
    for axes in (cosine, variance):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
        axes.grid(alpha=0.3)
    return figure
