"""Strategies 1 and 2: random search, and steps in random directions that are kept if they help.

Scores are linear in W: those of W + step U are those of W plus step times those of U. So in local
search, the workers compute the scores of many directions at once, before it is known which steps
are taken; this process only evaluates the loss. `local_search_loop` is the plain loop, which
decides the same.

Source: CS231n notes, "Optimization", strategies 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.arrays import Floats, Ints
from distsgd.data.dataset import open_dataset
from distsgd.engine.blas import one_blas_thread
from distsgd.errors import UsageError
from distsgd.figures.drawn import new_figure
from distsgd.lecture.material import LOSS_OF_SCORES, Pieces, accuracy_of, check_limit, check_loss
from distsgd.on_ray.task_pool import task_pool
from distsgd.spelling import spelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "LocalSearch",
    "RandomSearch",
    "direction",
    "draw_local_search",
    "draw_random_search",
    "first_weights",
    "local_search",
    "local_search_loop",
    "random_search",
    "random_weights",
]


SCALE = 1e-4
"""Standard deviation of W."""

_STREAM = 20
_ATTEMPTS_PER_TASK = 25
"""Attempts of a task: enough columns for a fast matrix product."""


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Result of a random search.

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
    """W = randn(10, 3073) * 0.0001, float32, a function of seed and attempt alone."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, _STREAM, attempt]))
    return (rng.standard_normal(shape) * SCALE).astype(np.float32)


@dataclass(frozen=True)
class _Attempts:
    """A task: the losses of a block of attempts."""

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
            chosen = range(
                block * _ATTEMPTS_PER_TASK, min((block + 1) * _ATTEMPTS_PER_TASK, self.attempts)
            )
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
    """Try random W, and keep the best.

    Args:
        dataset: where the examples come from; pixels are centred, not scaled.
        attempts: number of W to try.
        loss: "svm" or "softmax".
        examples: training examples to measure on; None for all.
        workers: worker processes; the result does not depend on them.
        seed: of the attempts.
        progress: called with the attempts made and the lowest loss so far.

    Raises:
        UsageError: an argument cannot be used.
    """
    check_loss(loss)
    check_limit("attempts", attempts, 10_000_000)
    opened = open_dataset(dataset)
    rows = len(opened.train)
    rows = rows if examples is None else check_limit("examples", examples, rows)
    opened.train.verify()
    result: list[float] = []
    recipe = _Attempts(dataset, loss, seed, rows, attempts)
    with task_pool(workers) as pool:
        for losses in pool.map(recipe, range(-(-attempts // _ATTEMPTS_PER_TASK))):
            result += losses.tolist()
            progress(len(result), min(result))
    best = int(np.argmin(result))
    shape = len(opened.manifest.classes), opened.manifest.features + 1
    weights = random_weights(seed, best, shape)
    return RandomSearch(
        loss=loss, examples=rows, losses=tuple(result), best_attempt=best, best_loss=result[best],
        train_accuracy=accuracy_of(weights, Pieces.of(opened, "train", rows)),
        test_accuracy=accuracy_of(weights, Pieces.of(opened, "test")),
    )  # fmt: skip


def draw_random_search(result: RandomSearch) -> Figure:
    """The loss of every attempt, and the best so far."""
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    numbers = np.arange(1, len(result.losses) + 1)
    axes.plot(numbers, result.losses, ".", markersize=3, alpha=0.5, label="attempts")
    axes.step(numbers, np.minimum.accumulate(result.losses), where="post", label="best so far")
    axes.set(xlabel="attempt", ylabel=f"{result.loss} loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


STEP = 1e-4
_START, _DIRECTIONS = 21, 22
_DIRECTIONS_PER_TASK = 5
"""Directions of a task; their scores are what it returns: 10 MB for CIFAR-10."""
_REFRESH = 100
"""Tries after which scores are computed from W again: rounding errors do not pile up."""


@dataclass(frozen=True, kw_only=True)
class LocalSearch:
    """Result of a local search.

    Attributes:
        loss: "svm" or "softmax".
        step: length of a step, for each entry of W.
        examples: training examples that losses were measured on.
        losses: of W before the first try, and after each.
        taken: numbers of the tries that were taken, from 1.
        train_accuracy: of the last W.
        test_accuracy: of the last W.
    """

    loss: str
    step: float
    examples: int
    losses: tuple[float, ...]
    taken: tuple[int, ...]
    train_accuracy: float
    test_accuracy: float


def first_weights(seed: int, shape: tuple[int, ...], scale: float = SCALE) -> Floats:
    """W = randn(10, 3073) * 0.0001, float32."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, _START]))
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def direction(seed: int, number: int, shape: tuple[int, ...]) -> Floats:
    """U = randn(10, 3073) of a try, float32, a function of seed and try alone."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, _DIRECTIONS, number]))
    return rng.standard_normal(shape).astype(np.float32)


def local_search_loop(
    weights: Floats,
    features: Floats,
    labels: Ints,
    loss: Callable[[Floats], float],
    *,
    tries: int,
    step: float = STEP,
    seed: int = 0,
) -> Iterator[tuple[Floats, float]]:
    """The loop of the lecture.

    Args:
        weights: W to begin with.
        features: not used but by ``loss``; here to show what it closes over.
        labels: likewise.
        loss: W -> L.
        tries: how many.
        step: length of a step.
        seed: of the directions.

    Yields:
        W and its loss, after each try.
    """
    best = loss(weights)
    for number in range(tries):
        attempt = weights + step * direction(seed, number, weights.shape)
        result = loss(attempt)
        if result < best:
            weights, best = attempt, result
        yield weights, best


@dataclass(frozen=True)
class _Directions:
    """A task: the scores of a block of directions."""

    dataset: str
    seed: int
    examples: int
    tries: int

    def open(self) -> Callable[[int], Floats]:
        dataset = open_dataset(self.dataset)
        pieces = Pieces.of(dataset, "train", self.examples)
        shape = len(dataset.manifest.classes), dataset.manifest.features + 1

        def scores(block: int) -> Floats:
            chosen = range(
                block * _DIRECTIONS_PER_TASK, min((block + 1) * _DIRECTIONS_PER_TASK, self.tries)
            )
            stack = np.stack([direction(self.seed, number, shape) for number in chosen])
            return np.ascontiguousarray(pieces.scores(stack).transpose(1, 0, 2))

        return scores


class _Walker:
    """W with its scores on all examples."""

    def __init__(self, pieces: Pieces, weights: Floats, loss: str, step: float) -> None:
        self._pieces, self._loss, self._step = pieces, LOSS_OF_SCORES[loss], step
        self._labels = pieces.split.labels[: pieces.limit].astype(np.intp)
        self.weights = weights
        self.refresh()
        self.best = self._measure(self._scores.copy())

    def refresh(self) -> None:
        """Compute the scores from W."""
        self._scores: Floats = self._pieces.scores(self.weights[None])[:, 0]

    def _measure(self, scores: Floats) -> float:
        losses = self._loss(scores[:, None, :], self._labels)
        return float(losses.sum(dtype=np.float64) / len(losses))

    def attempt(self, unit: Floats, its_scores: Floats) -> bool:
        """Take the step if the loss falls; return whether it is taken."""
        scores = self._scores + np.float32(self._step) * its_scores
        result = self._measure(scores.copy())
        if not result < self.best:
            return False
        self.best, self._scores = result, scores
        self.weights = self.weights + np.float32(self._step) * unit
        return True


def local_search(
    dataset: str = "cifar10",
    *,
    tries: int = 1_000,
    step: float = STEP,
    scale: float = SCALE,
    loss: str = "svm",
    examples: int | None = None,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda done, best: None,
) -> LocalSearch:
    """Try steps in random directions, and keep each that lowers the loss.

    Args:
        dataset: where the examples come from; pixels are centred, not scaled.
        tries: how many.
        step: their length, for each entry of W.
        scale: standard deviation of the first W.
        loss: "svm" or "softmax".
        examples: training examples to measure on; None for all.
        workers: worker processes; the result does not depend on them.
        seed: of the first W and the directions.
        progress: called with the tries made and the loss.

    Raises:
        UsageError: an argument cannot be used.
    """
    check_loss(loss)
    check_limit("tries", tries, 10_000_000)
    for name, value in (("step", step), ("scale", scale)):
        if not 0 < value < np.inf:
            raise UsageError(
                f"{spelled(name)} cannot be {value}", "Give a number above 0, as 0.0001"
            )
    opened = open_dataset(dataset)
    rows = len(opened.train)
    rows = rows if examples is None else check_limit("examples", examples, rows)
    shape = len(opened.manifest.classes), opened.manifest.features + 1
    recipe, taken = _Directions(dataset, seed, rows, tries), []
    with task_pool(workers) as pool, one_blas_thread():
        pieces = Pieces.of(opened, "train", rows)
        walker = _Walker(pieces, first_weights(seed, shape, scale), loss, step)
        losses = [walker.best]
        for block in pool.map(recipe, range(-(-tries // _DIRECTIONS_PER_TASK))):
            for its_scores in block:
                number = len(losses)
                if walker.attempt(direction(seed, number - 1, shape), its_scores):
                    taken.append(number)
                losses.append(walker.best)
                if number % _REFRESH == 0:
                    walker.refresh()
                    progress(number, walker.best)
        return LocalSearch(
            loss=loss, step=step, examples=rows, losses=tuple(losses), taken=tuple(taken),
            train_accuracy=accuracy_of(walker.weights, pieces),
            test_accuracy=accuracy_of(walker.weights, Pieces.of(opened, "test")),
        )  # fmt: skip


def draw_local_search(result: LocalSearch) -> Figure:
    """The loss after each try; dots are steps that were taken."""
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    axes.step(range(len(result.losses)), result.losses, where="post")
    axes.plot(result.taken, [result.losses[number] for number in result.taken], ".", markersize=3)
    axes.set(xlabel="try", ylabel=f"{result.loss} loss")
    axes.grid(alpha=0.3)
    return figure
