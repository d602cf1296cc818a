"""Chapters of the lecture: losses, their landscapes, their gradients by formula."""

from __future__ import annotations

import tempfile
from math import log
from pathlib import Path
from typing import Any

from distsgd.lecture.draw_graphs import draw_chain_rule
from distsgd.lecture.experiments.compare_formulas import compare_formulas, draw_formulas
from distsgd.lecture.experiments.convexity import check_convexity, draw_convexity
from distsgd.lecture.experiments.draw_landscape import draw_landscape, draw_lines, draw_planes
from distsgd.lecture.experiments.hinges import draw_hinges, hinges
from distsgd.lecture.experiments.initial_loss import draw_initial_loss, initial_loss
from distsgd.lecture.experiments.landscape import landscape
from distsgd.lecture.page.findings import Options, Part, at_least, at_most, count_at_most, near
from distsgd.lecture.plain.chain_rule import worked_examples
from distsgd.training.training import train

__all__ = ["chain_rule", "formulas", "landscapes", "losses", "piecewise"]


def losses(options: Options) -> Part:
    """Scores, both losses, and what they are for W that knows nothing."""
    examples = options.examples(1_000, 500)
    found = initial_loss(options.dataset, examples=examples, seed=options.seed)
    small, classes = found.rows[2], len(options.manifest.classes)
    return Part(
        commands=(options.command(f"study loss --examples {examples}"),),
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
        measured = options.examples(10_000, 1_500)
        path = landscape(run=str(run), examples=measured, **few)
    lines_of = [f"--example 3 --points {len(line.a)}", f"--examples {many} --points 101"]
    planes_of = [
        f"--loss {loss} {images}"
        for images in ("--example 3", f"--examples {many}")
        for loss in ("svm", "softmax")
    ]
    return Part(
        commands=(
            *(options.command(f"landscape --along random:0 {flags}", workers=True)
              for flags in lines_of),
            *(options.command(f"landscape {flags}", workers=True) for flags in planes_of),
            options.command(f"train --epochs {epochs} --workers 0"),
            options.command(f"landscape --run latest --examples {measured}", data=False,
                            workers=True),
        ),
        checks=(
            count_at_most("bends", line.kinks, len(options.manifest.classes) - 1),
            at_least("path", path.path_share or 0.0, 0.9, percent=True),
        ),
        figures={
            "lines": draw_lines(lines), "one": draw_planes(planes[:2]),
            "many": draw_planes(planes[2:]), "path": draw_landscape(path),
        },
    )  # fmt: skip


def piecewise(options: Options) -> Part:
    """The SVM loss of three points, term by term; convexity, and where it ends."""
    found = hinges()
    examples, segments = options.examples(200, 100), options.of(50, 10)
    convex = check_convexity(
        options.dataset, examples=examples, segments=segments, seed=options.seed
    )
    return Part(
        commands=(
            options.command("study hinges", data=False, seed=False),
            options.command(f"study convexity --examples {examples} --segments {segments}"),
        ),
        checks=(
            at_most("terms", found.terms_difference, 1e-12),
            at_most("slopes", found.slopes_difference, 1e-6),
            at_most("convex", convex.worst_linear, 1e-12),
            at_least("not_convex", convex.least_two_layers, 0.01),
        ),
        figures={"hinges": draw_hinges(found), "segments": draw_convexity(convex)},
    )


def formulas(options: Options) -> Part:
    """The analytic gradients of both losses, formula by formula."""
    examples = options.of(20, 10)
    found = compare_formulas(options.dataset, examples=examples, seed=options.seed)
    return Part(
        commands=(
            options.command(f"study formulas --examples {examples}"),
            options.command("gradcheck"),
        ),
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
    return Part(
        commands=(options.command("study chain-rule", data=False, seed=False),),
        checks=(
            at_most("differences", found.largest_difference, 1e-8),
            at_most("softmax", found.softmax_difference, 1e-12),
        ),
        figures={"graphs": draw_chain_rule(found)},
    )
