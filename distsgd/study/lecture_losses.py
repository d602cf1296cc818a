"""Chapters of the lecture: losses, their landscapes, their gradients by formula."""

from __future__ import annotations

import tempfile
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.api.training import train
from distsgd.study.chain_rule import worked_examples
from distsgd.study.compare_formulas import compare_formulas, draw_formulas
from distsgd.study.convexity import check_convexity, draw_convexity
from distsgd.study.draw_graphs import draw_chain_rule
from distsgd.study.draw_landscape import draw_landscape, draw_lines, draw_planes
from distsgd.study.hinges import draw_hinges, hinges, loss_at
from distsgd.study.initial_loss import draw_initial_loss, initial_loss
from distsgd.study.landscape import Landscape, landscape
from distsgd.study.lecture_material import (
    Options,
    Part,
    at_least,
    at_most,
    count_at_most,
    near,
)

__all__ = ["chain_rule", "formulas", "landscapes", "losses", "piecewise"]


def losses(options: Options) -> Part:
    """Scores, both losses, and what they are for W that knows nothing."""
    found = initial_loss(options.dataset, examples=options.examples(1_000, 500), seed=options.seed)
    small, classes = found.rows[2], len(options.manifest.classes)
    return Part(
        commands=(options.command("study loss"),),
        checks=(
            near("svm", small.svm, classes - 1, 0.3),
            near("softmax", small.softmax, log(classes), 0.15),
        ),
        figures={"scales": draw_initial_loss(found)},
    )


def landscapes(options: Options) -> Part:
    """Lines and planes, one example and many, random and trained W."""
    few: dict[str, Any] = {"workers": options.workers, "seed": options.seed}
    many = options.examples(1_500, 500)
    dataset, epochs = options.dataset, options.of(10, 5)
    line = landscape(dataset, along=["random:0"], example=3, points=401, **few)
    lines = [line, landscape(dataset, along=["random:0"], examples=many, points=101, **few)]
    planes = [landscape(dataset, loss=loss, example=3, **few) for loss in ("svm", "softmax")] + [
        landscape(dataset, loss=loss, examples=many, **few) for loss in ("svm", "softmax")
    ]
    with tempfile.TemporaryDirectory(prefix="distsgd-study-") as folder:
        run = Path(folder, "run")
        train(dataset, epochs=epochs, workers=0, run_dir=run, seed=options.seed)
        path = landscape(run=str(run), examples=options.examples(10_000, 1_500), **few)
    return Part(
        commands=(
            options.command("landscape --along random:0 --example 3", workers=True),
            options.command("landscape --plot plane.png", workers=True),
            options.command(f"train --epochs {epochs} --workers 0"),
            options.command("landscape --run latest --plot path.png", data=False, workers=True),
        ),
        checks=(
            count_at_most("bends", _bends(line), len(options.manifest.classes) - 1),
            at_least("path", path.path_share or 0.0, 0.9, percent=True),
        ),
        figures={
            "lines": draw_lines(lines), "one": draw_planes(planes[:2]),
            "many": draw_planes(planes[2:]), "path": draw_landscape(path),
        },
    )  # fmt: skip


def _bends(line: Landscape) -> int:
    """Places where the slope of a line changes; two neighbouring ones are one kink between."""
    bent = np.abs(np.diff(line.losses[0], 2)) > 1e-9
    return int(bent[0]) + int(np.count_nonzero(bent[1:] & ~bent[:-1]))


def piecewise(options: Options) -> Part:
    """The SVM loss of three points, term by term; convexity, and where it ends."""
    found = hinges()
    places = np.linspace(-4, 4, 801)
    total = sum(term(places) for term in found.terms) / 3
    by_formula = np.array([loss_at(w0, found.points, found.weights) for w0 in places])
    convex = check_convexity(
        options.dataset, examples=options.examples(200, 100), segments=options.of(50, 10),
        seed=options.seed,
    )  # fmt: skip
    curved = min(one.excess for one in convex.shown if one.model != "linear")
    return Part(
        commands=(
            options.command("study hinges", data=False),
            options.command("study convexity"),
        ),
        checks=(
            at_most("terms", float(np.abs(total - by_formula).max()), 1e-12),
            at_most("slopes", _off_at_kinks(), 1e-6),
            at_most("convex", convex.worst_linear, 1e-12),
            at_least("not_convex", curved, 0.01),
        ),
        figures={"hinges": draw_hinges(found), "segments": draw_convexity(convex)},
    )


def _off_at_kinks() -> float:
    """Slopes on both sides of every kink against differences of the loss."""
    found, h, off = hinges(), 1e-4, 0.0
    for kink in found.kinks:
        for side, slope in ((-1, kink.left), (1, kink.right)):
            near_by = loss_at(kink.w0 + side * h, found.points, found.weights)
            off = max(off, abs(side * (near_by - kink.loss) / h - slope))
    return off


def formulas(options: Options) -> Part:
    """The analytic gradients of both losses, formula by formula."""
    found = compare_formulas(options.dataset, examples=options.of(20, 10), seed=options.seed)
    return Part(
        commands=(options.command("study formulas"), options.command("gradcheck")),
        checks=tuple(
            check
            for row in found.rows
            for check in (
                at_most(f"{row.loss}_fast", max(row.of_an_example, row.of_the_mean), 1e-12),
                at_most(f"{row.loss}_numerical", row.numerical, 1e-7),
            )
        ),
        figures={"first": draw_formulas(found)},
    )


def chain_rule(options: Options) -> Part:
    """The chain rule, worked through."""
    found = worked_examples()
    softmax = found.examples[-1].quantities
    slopes = [one.gradient for one in softmax if one.name.startswith("s")]
    shares = [one.value for one in softmax if one.name.startswith("p")]
    off = max(abs(slope - share) for slope, share in zip(slopes[1:], shares[1:], strict=True))
    return Part(
        commands=(options.command("study chain-rule", data=False),),
        checks=(
            at_most("differences", max(one.largest_difference for one in found.examples), 1e-8),
            at_most("softmax", max(off, abs(slopes[0] - (shares[0] - 1))), 1e-12),
        ),
        figures={"graphs": draw_chain_rule(found)},
    )
