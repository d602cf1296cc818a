"""Each formula of the gradient beside the fast code that training uses, and beside differences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.model import LOSSES
from distsgd.data.dataset import open_dataset
from distsgd.lecture.drawing import as_text, new_figure
from distsgd.lecture.material import Examples, check_limit, first_examples
from distsgd.lecture.objective import loss_and_gradient
from distsgd.lecture.plain.chain_rule import (
    EXAMPLE_GRADIENT,
    EXAMPLE_LOSS,
    GRADIENT_BY_SCORES,
    mean_gradient,
    probabilities,
    score,
    svm_margins,
)
from distsgd.lecture.plain.numerical_gradient import central_gradient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FormulaRow", "Formulas", "OneExample", "compare_formulas", "draw_formulas"]


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
    check_limit("--examples", examples, len(opened.train))
    found = first_examples(opened, "train", examples, scale=64.0)
    weights = np.random.default_rng(seed).standard_normal(found.shape) * 1e-2
    rows = tuple(_row(weights, found, loss) for loss in sorted(LOSSES, reverse=True))
    s, y = score(weights, found.features[0]), int(found.labels[0])
    first = OneExample(
        label=y, classes=opened.manifest.classes,
        scores=_plain(s), margins=_plain(svm_margins(s, y)),
        svm_slopes=_plain(GRADIENT_BY_SCORES["svm"](s, y)),
        probabilities=_plain(probabilities(s)),
        softmax_slopes=_plain(GRADIENT_BY_SCORES["softmax"](s, y)),
    )  # fmt: skip
    return Formulas(rows=rows, first=first)


def _row(weights: Floats, found: Examples, loss: str) -> FormulaRow:
    off, numerical = 0.0, 0.0
    for x, y in zip(found.features, found.labels.tolist(), strict=True):
        s = score(weights, x)
        fast = loss_and_gradient(weights, x[None], np.array([y]), loss)[1]
        off = max(off, _off(EXAMPLE_GRADIENT[loss](s, y, x), fast))
        slopes = central_gradient(partial(EXAMPLE_LOSS[loss], y=y), s.copy(), 1e-6)
        numerical = max(numerical, _off(GRADIENT_BY_SCORES[loss](s, y), slopes))
    mean = mean_gradient(weights, found.features, found.labels, loss)
    fast = loss_and_gradient(weights, found.features, found.labels, loss)[1]
    return FormulaRow(
        loss=loss, examples=len(found), of_an_example=off, of_the_mean=_off(mean, fast),
        numerical=numerical,
    )  # fmt: skip


def _off(found: Floats, expected: Floats) -> float:
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))


def _plain(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def draw_formulas(found: Formulas) -> Figure:
    """The first image: its scores, then margins or probabilities with dL_i/ds, class by class."""
    one = found.first
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
