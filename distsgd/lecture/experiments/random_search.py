"""Strategy 1, a first very bad idea: random search.

Source: CS231n notes, "Optimization", strategy 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.data.dataset import open_dataset
from distsgd.lecture.drawing import new_figure
from distsgd.lecture.material import check_limit, check_loss
from distsgd.lecture.objective import Pieces, accuracy_of
from distsgd.on_ray.task_pool import task_pool

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RandomSearch", "draw_random_search", "random_search", "random_weights"]

SCALE = 1e-4
_STREAM = 20
_BLOCK = 25
"""Attempts of a task: enough columns for a fast matrix product."""


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """What was found.

    Attributes:
        loss: "svm" or "softmax".
        examples: training examples each attempt was measured on.
        losses: of the attempts, in order.
        best_attempt: the first of those with the lowest loss, from 0.
        best_loss: of it.
        train_accuracy: of it.
        test_accuracy: of it.
    """

    loss: str
    examples: int
    losses: tuple[float, ...]
    best_attempt: int
    best_loss: float
    train_accuracy: float
    test_accuracy: float


def random_weights(seed: int, attempt: int, shape: tuple[int, ...]) -> Floats:
    """W = randn(10, 3073) * 0.0001, another for each attempt, whoever makes it; float32."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, _STREAM, attempt]))
    return (rng.standard_normal(shape) * SCALE).astype(np.float32)


@dataclass(frozen=True)
class _Attempts:
    """The recipe of a task: the losses of a block of attempts."""

    dataset: str
    loss: str
    seed: int
    examples: int
    attempts: int

    def open(self) -> Callable[[int], Floats]:
        dataset = open_dataset(self.dataset)
        pieces = Pieces.of(dataset, "train", self.examples)
        shape = len(dataset.manifest.classes), dataset.manifest.features + 1

        def losses(block: int) -> Floats:
            chosen = range(block * _BLOCK, min((block + 1) * _BLOCK, self.attempts))
            stack = np.stack([random_weights(self.seed, attempt, shape) for attempt in chosen])
            return pieces.losses(stack, self.loss)

        return losses


def random_search(
    dataset: str = "cifar10",
    *,
    attempts: int = 1_000,
    loss: str = "svm",
    examples: int | None = None,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda done, best: None,
) -> RandomSearch:
    """Try so many random W, and keep the best.

    Args:
        dataset: where the examples come from; pixels are centred, not scaled.
        attempts: how many W.
        loss: "svm" or "softmax".
        examples: training examples to measure on; None for all.
        workers: worker processes; the answer does not depend on them.
        seed: of the attempts.
        progress: told how many are done, and the lowest loss so far.

    Raises:
        UsageError: an argument cannot be used.
    """
    check_loss(loss)
    check_limit("--attempts", attempts, 10_000_000)
    opened = open_dataset(dataset)
    rows = len(opened.train)
    rows = rows if examples is None else check_limit("--examples", examples, rows)
    opened.train.verify()
    found: list[float] = []
    recipe = _Attempts(dataset, loss, seed, rows, attempts)
    with task_pool(workers) as pool:
        for losses in pool.map(recipe, range(-(-attempts // _BLOCK))):
            found += losses.tolist()
            progress(len(found), min(found))
    best = int(np.argmin(found))
    shape = len(opened.manifest.classes), opened.manifest.features + 1
    weights = random_weights(seed, best, shape)
    return RandomSearch(
        loss=loss, examples=rows, losses=tuple(found), best_attempt=best, best_loss=found[best],
        train_accuracy=accuracy_of(weights, Pieces.of(opened, "train", rows)),
        test_accuracy=accuracy_of(weights, Pieces.of(opened, "test")),
    )  # fmt: skip


def draw_random_search(found: RandomSearch) -> Figure:
    """The loss of every attempt, and the best so far."""
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    numbers = np.arange(1, len(found.losses) + 1)
    axes.plot(numbers, found.losses, ".", markersize=3, alpha=0.5, label="attempts")
    axes.step(numbers, np.minimum.accumulate(found.losses), where="post", label="best so far")
    axes.set(xlabel="attempt", ylabel=f"{found.loss} loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
