"""The effect of the step size: one step down the gradient, of ten lengths.

Source: CS231n notes, "Optimization", effect of step size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.model import LOSSES
from distsgd.data.dataset import open_dataset
from distsgd.errors import UsageError
from distsgd.figures.drawn import new_figure
from distsgd.lecture.material import LOSS_OF_SCORES, Pieces, check_limit, check_loss
from distsgd.on_ray.task_pool import task_pool
from distsgd.spelling import spelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STEPS", "StepSizes", "draw_step_sizes", "step_sizes"]

STEPS = tuple(10.0**power for power in range(-10, 0))
_STREAM = 23
_MOST_STEPS = 1_000


@dataclass(frozen=True, kw_only=True)
class StepSizes:
    """The table of the lecture.

    Attributes:
        loss: "svm" or "softmax".
        examples: that losses are means over.
        loss_before: of W.
        steps: lengths.
        losses: of W - step * gradient.
    """

    loss: str
    examples: int
    loss_before: float
    steps: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def best_step(self) -> float:
        """The one with the lowest loss."""
        return self.steps[int(np.argmin(self.losses))]

    @property
    def last_ratios(self) -> tuple[float, ...]:
        """Losses of the three largest steps over those of the steps before them.

        NaN after a loss of 0, which few examples can have.
        """
        pairs = zip(self.losses[-4:-1], self.losses[-3:], strict=True)
        return tuple(after / before if before else math.nan for before, after in pairs)


@dataclass(frozen=True, eq=False)
class _Losses:
    """The recipe of a task: sums over a piece of the losses of some W; the gradient of the first.

    Attributes:
        weights: shape (count, classes, features + 1), float32.
    """

    dataset: str
    loss: str
    examples: int
    weights: Floats
    gradient: bool

    def open(self) -> Callable[[int], tuple[Floats, Floats]]:
        pieces = Pieces.of(open_dataset(self.dataset), "train", self.examples)
        stack = self.weights.reshape(-1, self.weights.shape[2]).T

        def measure(number: int) -> tuple[Floats, Floats]:
            features, labels = pieces.piece(number)
            scores = (features @ stack).reshape(len(labels), len(self.weights), -1)
            slope = np.zeros(0)
            if self.gradient:
                by_score = np.empty_like(scores[:, 0])
                LOSSES[self.loss](scores[:, 0].copy(), labels, by_score)
                slope = (by_score.T @ features).astype(np.float64)
            losses = LOSS_OF_SCORES[self.loss](scores, labels)
            return losses.sum(axis=0, dtype=np.float64), slope

        return measure


def step_sizes(
    dataset: str = "cifar10",
    *,
    loss: str = "svm",
    steps: Sequence[float] = STEPS,
    examples: int | None = None,
    workers: int = 0,
    seed: int = 0,
) -> StepSizes:
    """From W = rand(10, 3073) * 0.001, one step of each length along the negative gradient.

    Args:
        dataset: where the examples come from; pixels are centred, not scaled.
        loss: "svm" or "softmax".
        steps: their lengths.
        examples: training examples to measure on; None for all.
        workers: worker processes; the answer does not depend on them.
        seed: of W.

    Raises:
        UsageError: an argument cannot be used.
    """
    check_loss(loss)
    if not 4 <= len(steps) <= _MOST_STEPS or not all(0 < step < np.inf for step in steps):
        raise UsageError(
            f"{spelled('steps')} must be 4 to {_MOST_STEPS} numbers above 0",
            "As 1e-8,1e-6,1e-4,1e-2",
        )
    opened = open_dataset(dataset)
    rows = len(opened.train)
    rows = rows if examples is None else check_limit("examples", examples, rows)
    shape = len(opened.manifest.classes), opened.manifest.features + 1
    rng = np.random.default_rng(np.random.SeedSequence([seed, _STREAM]))
    weights = (rng.random(shape) * 0.001).astype(np.float32)
    numbers = range(len(Pieces.of(opened, "train", rows)))
    with task_pool(workers) as pool:
        total, slope = np.zeros(1), np.zeros(shape)
        for losses, part in pool.map(_Losses(dataset, loss, rows, weights[None], True), numbers):
            total, slope = total + losses, slope + part
        slope /= rows
        tried = np.stack([(weights - step * slope).astype(np.float32) for step in steps])
        after = np.zeros(len(steps))
        for losses, _ in pool.map(_Losses(dataset, loss, rows, tried, False), numbers):
            after += losses
    return StepSizes(
        loss=loss, examples=rows, loss_before=float(total[0] / rows), steps=tuple(steps),
        losses=tuple((after / rows).tolist()),
    )  # fmt: skip


def draw_step_sizes(result: Sequence[StepSizes]) -> Figure:
    """The loss after the step, on log axes; dashed: before it."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    for number, one in enumerate(result):
        axes.loglog(one.steps, one.losses, "o-", color=f"C{number}", label=one.loss)
        axes.axhline(one.loss_before, color=f"C{number}", linestyle="--", linewidth=0.8)
    axes.set(xlabel="step size", ylabel="loss after one step")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
