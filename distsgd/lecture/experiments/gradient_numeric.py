"""The numerical gradient over all of W, its entries spread over the workers, and its error."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.data.dataset import open_dataset
from distsgd.errors import UsageError
from distsgd.lecture.drawing import new_figure
from distsgd.lecture.material import Examples, check_limit, check_loss, first_examples
from distsgd.lecture.objective import LOSS_OF_SCORES, gradient_of
from distsgd.lecture.plain.numerical_gradient import partials, steps_without_kinks
from distsgd.on_ray.task_pool import task_pool

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "SCHEMES", "ErrorCurve", "NumericGradient", "NumericRow", "draw_numeric_gradient",
    "numeric_gradient",
]  # fmt: skip

SCHEMES = ("one-sided", "central")
STEPS = tuple(10.0**-power for power in range(1, 13))
_BLOCK = 512
"""Entries of W of a task."""
_SCALE = 64.0
_WEIGHTS = 1e-2


@dataclass(frozen=True, kw_only=True)
class NumericRow:
    """One way to compute the gradient.

    Attributes:
        scheme: "one-sided" or "central".
        parameters: entries of W.
        evaluations: how often the loss was computed over all examples.
        relative_error: |numerical - analytic| / |analytic|, of the vectors.
        largest_error: of an entry, relative to the larger of the two, of those that are not tiny.
        shorter_steps: entries with a kink of the SVM loss within h, where h was halved until
            there was none.
        seconds: it took.
    """

    scheme: str
    parameters: int
    evaluations: int
    relative_error: float
    largest_error: float
    shorter_steps: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ErrorCurve:
    """The error as a function of h, over some entries of W.

    Attributes:
        scheme: "one-sided" or "central".
        steps: h.
        relative_errors: of the vectors; h is the same for all entries, kinks or no kinks.
    """

    scheme: str
    steps: tuple[float, ...]
    relative_errors: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class NumericGradient:
    """The comparison.

    Attributes:
        loss: "svm" or "softmax".
        examples: that the loss is a mean over.
        h: the step.
        analytic_seconds: to compute the gradient by its formula.
        rows: one for each scheme.
        curves: one for each scheme.
    """

    loss: str
    examples: int
    h: float
    analytic_seconds: float
    rows: tuple[NumericRow, ...]
    curves: tuple[ErrorCurve, ...]


class _Task(NamedTuple):
    scheme: str
    chosen: tuple[int, ...]
    h: float
    avoid_kinks: bool


@dataclass(frozen=True)
class _Partials:
    """The recipe of a task: some partial derivatives."""

    dataset: str
    loss: str
    examples: int
    seed: int

    def open(self) -> Callable[[_Task], tuple[Floats, int, int]]:
        examples, weights = _setting(self.dataset, self.examples, self.seed)
        scores = examples.features @ weights.T

        def losses(stack: Floats) -> Floats:
            product = examples.features @ stack.reshape(-1, stack.shape[2]).T
            every = product.reshape(len(examples), *stack.shape[:2])
            mean: Floats = LOSS_OF_SCORES[self.loss](every, examples.labels).mean(axis=0)
            return mean

        def derive(task: _Task) -> tuple[Floats, int, int]:
            chosen = np.array(task.chosen)
            steps = np.full(len(chosen), task.h)
            if task.avoid_kinks and self.loss == "svm":
                every = steps_without_kinks(scores, examples.labels, examples.features, task.h)
                steps = every.reshape(-1)[chosen]
            found, calls = partials(losses, weights, chosen, steps, task.scheme)
            return found, calls, int(np.count_nonzero(steps < task.h))

        return derive


def _setting(dataset: str, examples: int, seed: int) -> tuple[Examples, Floats]:
    found = first_examples(open_dataset(dataset), "train", examples, scale=_SCALE)
    rng = np.random.default_rng(seed)
    return found, rng.standard_normal(found.shape) * _WEIGHTS


def numeric_gradient(
    dataset: str = "cifar10",
    *,
    loss: str = "svm",
    examples: int = 500,
    h: float = 1e-5,
    steps: Sequence[float] = STEPS,
    schemes: Sequence[str] = SCHEMES,
    parameters: int | None = None,
    curve_parameters: int = 200,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NumericGradient:
    """Compare numerical gradients with the analytic one, in float64.

    Pixels are centred and divided by 64, W is randn * 0.01: scores are about 1.

    Args:
        dataset: where the examples come from.
        loss: "svm" or "softmax".
        examples: that the loss is a mean over.
        h: the step.
        steps: h for the curves.
        schemes: which of `SCHEMES`.
        parameters: entries of W, the first in its order; None for all.
        curve_parameters: entries, drawn at random, for the curves.
        workers: worker processes; the answer does not depend on them.
        seed: of W.
        progress: told how many entries are done, and of how many.

    Raises:
        UsageError: an argument cannot be used.
    """
    check_loss(loss)
    _check_steps(h, steps)
    opened = open_dataset(dataset)
    check_limit("--examples", examples, len(opened.train))
    every = len(opened.manifest.classes) * (opened.manifest.features + 1)
    count = every if parameters is None else check_limit("--parameters", parameters, every)
    setting, weights = _setting(dataset, examples, seed)
    began = time.perf_counter()
    analytic = gradient_of(weights, setting, loss).reshape(-1)
    analytic_seconds = time.perf_counter() - began
    some = np.sort(np.random.default_rng([seed, 1]).permutation(every)[:curve_parameters])
    recipe, rows, curves = _Partials(dataset, loss, examples, seed), [], []
    with task_pool(workers) as pool:
        for scheme in schemes:
            began = time.perf_counter()
            tasks = [
                _Task(scheme, tuple(range(low, min(low + _BLOCK, count))), h, True)
                for low in range(0, count, _BLOCK)
            ]
            parts, calls, shorter = [], 0, 0
            for found, evaluations, halved in pool.map(recipe, tasks):
                parts.append(found)
                calls, shorter = calls + evaluations, shorter + halved
                progress(sum(map(len, parts)), count)
            # W itself is evaluated once a task; it would be enough once in all.
            calls -= (len(tasks) - 1) * (scheme == "one-sided")
            rows.append(
                _row(scheme, np.concatenate(parts), analytic[:count], calls, shorter, began)
            )
        for scheme in schemes:
            sweep = [_Task(scheme, tuple(some.tolist()), step, False) for step in steps]
            errors = [
                _relative_error(found, analytic[some]) for found, _, _ in pool.map(recipe, sweep)
            ]
            curves.append(
                ErrorCurve(scheme=scheme, steps=tuple(steps), relative_errors=tuple(errors))
            )
    return NumericGradient(
        loss=loss, examples=examples, h=h, analytic_seconds=analytic_seconds,
        rows=tuple(rows), curves=tuple(curves),
    )  # fmt: skip


def _check_steps(h: float, steps: Sequence[float]) -> None:
    if not len(steps):
        raise UsageError("--steps is empty", "Give steps h, as 1e-3,1e-5,1e-7")
    for step in (h, *steps):
        if not 0 < step < 1e3:
            raise UsageError(f"a step h cannot be {step:g}", "Give numbers above 0, as 1e-5")


def _relative_error(found: Floats, analytic: Floats) -> float:
    """|numerical - analytic| / |analytic|; absolute where the gradient is 0, as of few examples."""
    return float(np.linalg.norm(found - analytic) / (np.linalg.norm(analytic) or 1.0))


def _row(
    scheme: str, found: Floats, analytic: Floats, calls: int, shorter: int, began: float
) -> NumericRow:
    larger = np.maximum(np.abs(found), np.abs(analytic))
    counts = larger > 1e-3 * larger.mean()
    return NumericRow(
        scheme=scheme, parameters=len(found), evaluations=calls,
        relative_error=_relative_error(found, analytic),
        largest_error=float((np.abs(found - analytic)[counts] / larger[counts]).max(initial=0.0)),
        shorter_steps=shorter, seconds=time.perf_counter() - began,
    )  # fmt: skip


def draw_numeric_gradient(found: NumericGradient) -> Figure:
    """The error against h: truncation to the right, rounding to the left."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    for curve in found.curves:
        axes.loglog(curve.steps, curve.relative_errors, "o-", label=curve.scheme)
    axes.axvline(found.h, color="grey", linestyle="--", linewidth=0.8)
    axes.set(xlabel="h", ylabel=f"relative error of the gradient ({found.loss})")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
