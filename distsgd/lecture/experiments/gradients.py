"""The gradient computed in several ways, and how far apart they are.

- `numeric_gradient`: over all of W by differences, its entries spread over the workers, against
  the analytic gradient.
- `compare_formulas`: each formula of the lecture against the fast code that training uses, and
  against differences.

Source: CS231n notes, "Optimization", computing the gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.model import LOSSES
from distsgd.data.dataset import open_dataset
from distsgd.errors import UsageError
from distsgd.figures.drawn import as_text, new_figure
from distsgd.lecture.material import (
    LOSS_OF_SCORES,
    Examples,
    check_limit,
    check_loss,
    first_examples,
    gradient_of,
    loss_and_gradient,
)
from distsgd.lecture.plain.chain_rule import (
    EXAMPLE_GRADIENT,
    EXAMPLE_LOSS,
    GRADIENT_BY_SCORES,
    mean_gradient,
    probabilities,
    score,
    svm_margins,
)
from distsgd.lecture.plain.loops import central_gradient, partials, steps_without_kinks
from distsgd.on_ray.task_pool import task_pool
from distsgd.spelling import spelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "SCHEMES",
    "ErrorCurve",
    "FormulaRow",
    "Formulas",
    "NumericGradient",
    "NumericRow",
    "OneExample",
    "compare_formulas",
    "draw_formulas",
    "draw_numeric_gradient",
    "numeric_gradient",
]


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
            result, calls = partials(losses, weights, chosen, steps, task.scheme)
            return result, calls, int(np.count_nonzero(steps < task.h))

        return derive


def _setting(dataset: str, examples: int, seed: int) -> tuple[Examples, Floats]:
    result = first_examples(open_dataset(dataset), "train", examples, scale=_SCALE)
    rng = np.random.default_rng(seed)
    return result, rng.standard_normal(result.shape) * _WEIGHTS


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
        progress: called with the number of entries that are done, and of all.

    Raises:
        UsageError: an argument cannot be used.
    """
    check_loss(loss)
    _check_steps(h, steps)
    opened = open_dataset(dataset)
    check_limit("examples", examples, len(opened.train))
    every = len(opened.manifest.classes) * (opened.manifest.features + 1)
    count = every if parameters is None else check_limit("parameters", parameters, every)
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
            for result, evaluations, halved in pool.map(recipe, tasks):
                parts.append(result)
                calls, shorter = calls + evaluations, shorter + halved
                progress(sum(map(len, parts)), count)
            # W itself is evaluated once a task; it would be enough once in all.
            calls -= (len(tasks) - 1) * (scheme == "one-sided")
            rows.append(
                _numeric_row(scheme, np.concatenate(parts), analytic[:count], calls, shorter, began)
            )
        for scheme in schemes:
            sweep = [_Task(scheme, tuple(some.tolist()), step, False) for step in steps]
            errors = [
                _relative_error(result, analytic[some]) for result, _, _ in pool.map(recipe, sweep)
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
        raise UsageError(f"{spelled('steps')} is empty", "Give steps h, as 1e-3,1e-5,1e-7")
    for step in (h, *steps):
        if not 0 < step < 1e3:
            raise UsageError(f"a step h cannot be {step:g}", "Give numbers above 0, as 1e-5")


def _relative_error(result: Floats, analytic: Floats) -> float:
    """|numerical - analytic| / |analytic|; absolute where the gradient is 0, as of few examples."""
    return float(np.linalg.norm(result - analytic) / (np.linalg.norm(analytic) or 1.0))


def _numeric_row(
    scheme: str, result: Floats, analytic: Floats, calls: int, shorter: int, began: float
) -> NumericRow:
    larger = np.maximum(np.abs(result), np.abs(analytic))
    counts = larger > 1e-3 * larger.mean()
    return NumericRow(
        scheme=scheme, parameters=len(result), evaluations=calls,
        relative_error=_relative_error(result, analytic),
        largest_error=float((np.abs(result - analytic)[counts] / larger[counts]).max(initial=0.0)),
        shorter_steps=shorter, seconds=time.perf_counter() - began,
    )  # fmt: skip


def draw_numeric_gradient(result: NumericGradient) -> Figure:
    """The error against h: truncation to the right, rounding to the left."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    for curve in result.curves:
        axes.loglog(curve.steps, curve.relative_errors, "o-", label=curve.scheme)
    axes.axvline(result.h, color="grey", linestyle="--", linewidth=0.8)
    axes.set(xlabel="h", ylabel=f"relative error of the gradient ({result.loss})")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


@dataclass(frozen=True, kw_only=True)
class FormulaRow:
    """The formulas of one loss, on real images.

    Attributes:
        loss: "svm" or "softmax".
        examples: how many images.
        of_an_example: largest difference of dL_i/dW to what training computes with, relative to
            its largest entry.
        of_the_mean: of dL/dW, likewise.
        numerical: of dL_i/ds to central differences, likewise.
    """

    loss: str
    examples: int
    of_an_example: float
    of_the_mean: float
    numerical: float


@dataclass(frozen=True, kw_only=True)
class OneExample:
    """What happens to the first image.

    Attributes:
        label: y.
        classes: their names.
        scores: s = W x.
        margins: s_j - s_y + 1, and 0 for j = y.
        svm_slopes: dL_i/ds of the SVM loss.
        probabilities: p = softmax(s).
        softmax_slopes: dL_i/ds of softmax.
    """

    label: int
    classes: tuple[str, ...]
    scores: tuple[float, ...]
    margins: tuple[float, ...]
    svm_slopes: tuple[float, ...]
    probabilities: tuple[float, ...]
    softmax_slopes: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Formulas:
    """The comparison.

    Attributes:
        rows: one for each loss.
        first: the first image.
    """

    rows: tuple[FormulaRow, ...]
    first: OneExample


def compare_formulas(dataset: str = "cifar10", *, examples: int = 20, seed: int = 0) -> Formulas:
    """Compare each formula with the fast gradients, and with central differences by the scores.

    Args:
        dataset: where the images come from.
        examples: how many of its first training images.
        seed: of W = randn * 0.01; pixels are centred and divided by 64.

    Raises:
        UsageError: an argument cannot be used.
    """
    opened = open_dataset(dataset)
    check_limit("examples", examples, len(opened.train))
    result = first_examples(opened, "train", examples, scale=64.0)
    weights = np.random.default_rng(seed).standard_normal(result.shape) * 1e-2
    rows = tuple(_formula_row(weights, result, loss) for loss in sorted(LOSSES, reverse=True))
    s, y = score(weights, result.features[0]), int(result.labels[0])
    first = OneExample(
        label=y, classes=opened.manifest.classes,
        scores=_plain(s), margins=_plain(svm_margins(s, y)),
        svm_slopes=_plain(GRADIENT_BY_SCORES["svm"](s, y)),
        probabilities=_plain(probabilities(s)),
        softmax_slopes=_plain(GRADIENT_BY_SCORES["softmax"](s, y)),
    )  # fmt: skip
    return Formulas(rows=rows, first=first)


def _formula_row(weights: Floats, result: Examples, loss: str) -> FormulaRow:
    off, numerical = 0.0, 0.0
    for x, y in zip(result.features, result.labels.tolist(), strict=True):
        s = score(weights, x)
        fast = loss_and_gradient(weights, x[None], np.array([y]), loss)[1]
        off = max(off, _relative_difference(EXAMPLE_GRADIENT[loss](s, y, x), fast))
        slopes = central_gradient(partial(EXAMPLE_LOSS[loss], y=y), s.copy(), 1e-6)
        numerical = max(numerical, _relative_difference(GRADIENT_BY_SCORES[loss](s, y), slopes))
    mean = mean_gradient(weights, result.features, result.labels, loss)
    fast = loss_and_gradient(weights, result.features, result.labels, loss)[1]
    return FormulaRow(
        loss=loss, examples=len(result), of_an_example=off, numerical=numerical,
        of_the_mean=_relative_difference(mean, fast),
    )  # fmt: skip


def _relative_difference(result: Floats, expected: Floats) -> float:
    return float(np.abs(result - expected).max() / (np.abs(expected).max() or 1.0))


def _plain(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def draw_formulas(result: Formulas) -> Figure:
    """The first image: its scores, then margins or probabilities with dL_i/ds, class by class."""
    one = result.first
    figure = new_figure(7, 6)
    axes = figure.subplots(3, 1, sharex=True)
    places = np.arange(len(one.classes))
    colours = ["C2" if j == one.label else "0.6" for j in places]
    axes[0].bar(places, one.scores, color=colours)
    axes[0].set(ylabel="scores s")
    for place, name, values, slopes in (
        (1, "SVM: margins", one.margins, one.svm_slopes),
        (2, "softmax: p", one.probabilities, one.softmax_slopes),
    ):
        axes[place].bar(places - 0.2, values, 0.4, color="C0", label=name)
        axes[place].bar(places + 0.2, slopes, 0.4, color="C3", label="dL/ds")
        axes[place].legend(fontsize=8)
    for each in axes:
        each.axhline(0, color="black", linewidth=0.6)
        each.grid(alpha=0.3, axis="y")
    axes[2].set_xticks(places, [as_text(name) for name in one.classes], rotation=30)
    label = as_text(one.classes[one.label])
    axes[0].set_title(f"the first image, label {label} (green)", fontsize=10)
    return figure
