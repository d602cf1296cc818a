"""Scores and losses of W that know nothing yet: about 9 for the SVM, about ln 10 for softmax.

With small W all scores are nearly 0. Each of the 9 other classes then adds a hinge of 1 - 0 + 0
to the SVM loss, and softmax gives every class a probability of 1/10.

Source: CS231n notes, "Neural networks 3", look for the correct loss at chance performance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

import numpy as np

from distsgd.data.dataset import open_dataset
from distsgd.errors import UsageError
from distsgd.figures.drawn import new_figure
from distsgd.lecture.material import check_limit, first_examples, loss_of
from distsgd.spelling import spelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["InitialLoss", "LossRow", "draw_initial_loss", "initial_loss"]

SCALES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True, kw_only=True)
class LossRow:
    """W = randn * scale.

    Attributes:
        scale: standard deviation of the entries of W.
        score_spread: standard deviation of the scores.
        svm: the loss.
        softmax: the loss.
    """

    scale: float
    score_spread: float
    svm: float
    softmax: float


@dataclass(frozen=True, kw_only=True)
class InitialLoss:
    """What was found.

    Attributes:
        examples: images that losses are means over.
        expected_svm: classes - 1.
        expected_softmax: ln classes.
        scores: of the first image, for W of the third scale (or the last, if there are fewer).
        label: of the first image.
        classes: their names.
        rows: one for each scale.
    """

    examples: int
    expected_svm: float
    expected_softmax: float
    scores: tuple[float, ...]
    label: int
    classes: tuple[str, ...]
    rows: tuple[LossRow, ...]


def initial_loss(
    dataset: str = "cifar10", *, examples: int = 1_000, scales: Sequence[float] = SCALES,
    seed: int = 0,
) -> InitialLoss:  # fmt: skip
    """Both losses of random W on raw pixels (mean-centred, not scaled).

    Args:
        dataset: where the images come from.
        examples: how many of its first training images.
        scales: standard deviations of W.
        seed: of W.

    Raises:
        UsageError: an argument cannot be used.
    """
    if not len(scales) or not all(0 < scale < 1e3 for scale in scales):
        raise UsageError(f"{spelled('scales')} must be numbers above 0", "As 1e-6,1e-4,1e-2")
    opened = open_dataset(dataset)
    check_limit("examples", examples, len(opened.train))
    result = first_examples(opened, "train", examples)
    unit = np.random.default_rng(seed).standard_normal(result.shape)
    rows = tuple(
        LossRow(
            scale=scale,
            score_spread=float((result.features @ (unit * scale).T).std()),
            svm=loss_of(unit * scale, result, "svm"),
            softmax=loss_of(unit * scale, result, "softmax"),
        )
        for scale in scales
    )
    return InitialLoss(
        examples=examples, expected_svm=result.classes - 1.0, expected_softmax=log(result.classes),
        scores=tuple((unit * scales[min(2, len(scales) - 1)] @ result.features[0]).tolist()),
        label=int(result.labels[0]), classes=opened.manifest.classes, rows=rows,
    )  # fmt: skip


def draw_initial_loss(result: InitialLoss) -> Figure:
    """Both losses against the scale of W, with what they must be for small W."""
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    scales = [row.scale for row in result.rows]
    for name, colour, expected in (
        ("svm", "C0", result.expected_svm), ("softmax", "C1", result.expected_softmax),
    ):  # fmt: skip
        losses = [getattr(row, name) for row in result.rows]
        axes.loglog(scales, losses, "o-", color=colour, label=name)
        axes.axhline(expected, color=colour, linestyle="--", linewidth=0.8)
    axes.set(xlabel="standard deviation of W", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
