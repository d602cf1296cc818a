"""``distsgd study loss|hinges|convexity|chain-rule|formulas``: losses and their gradients."""

from __future__ import annotations

from typing import Annotated

import typer

from distsgd.cli.output import JsonFlag, count, print_json, print_table, show
from distsgd.cli.study_options import DatasetFlag, PlotFlag, SeedFlag, checked, drawn, reals

__all__ = ["add_to"]

ImagesFlag = Annotated[int, typer.Option("--examples", help="Training images to look at.")]


def loss(
    dataset: DatasetFlag = "cifar10",
    examples: ImagesFlag = 1_000,
    scales: Annotated[
        str, typer.Option(help="Standard deviations of W, with commas between.")
    ] = "1e-6,1e-5,1e-4,1e-3,1e-2",
    seed: SeedFlag = 0,
    plot: PlotFlag = None,
    json: JsonFlag = False,
) -> None:
    """Scores and losses of random W: 9 and ln 10 as long as W is small.

    Example: distsgd study loss --dataset sample --plot loss.png
    """
    from distsgd.lecture.experiments.initial_loss import draw_initial_loss, initial_loss

    checked(plot)
    found = initial_loss(dataset, examples=examples, scales=reals("--scales", scales), seed=seed)
    drawn(plot, draw_initial_loss, found)
    if json:
        print_json(found)
        return
    print_table(
        ("standard deviation of W", "of the scores", "SVM loss", "softmax loss"),
        [
            (f"{row.scale:g}", f"{row.score_spread:.3g}", f"{row.svm:.4g}", f"{row.softmax:.4g}")
            for row in found.rows
        ],
    )
    show(f"for small W: {found.expected_svm:g} and {found.expected_softmax:.4f}")


def hinges(
    points: Annotated[
        str, typer.Option(help="x of the classes 0, 1 and 2, with commas between.")
    ] = "1,-0.5,2",
    weights: Annotated[str, typer.Option(help="w1 and w2, with a comma between.")] = "0.5,-1",
    plot: PlotFlag = None,
    json: JsonFlag = False,
) -> None:
    """The SVM loss of three points is piecewise linear: its terms, its kinks, the subgradient.

    Example: distsgd study hinges --plot hinges.png
    """
    from distsgd.lecture.experiments.hinges import draw_hinges
    from distsgd.lecture.experiments.hinges import hinges as take_apart

    checked(plot)
    found = take_apart(reals("--points", points), reals("--weights", weights))
    drawn(plot, draw_hinges, found)
    if json:
        print_json(found)
        return
    print_table(
        ("term", "slope", "at w0 = 0", "kink at w0"),
        [
            (f"point {term.example} against class {term.other}", f"{term.slope:g}",
             f"{term.intercept:g}", "-" if term.kink is None else f"{term.kink:g}")
            for term in found.terms
        ],
    )  # fmt: skip
    print_table(
        ("kink at w0", "loss", "subgradients from", "to", "used"),
        [
            (f"{kink.w0:g}", f"{kink.loss:.4f}", f"{kink.left:.4f}", f"{kink.right:.4f}",
             f"{kink.used:.4f}")
            for kink in found.kinks
        ],
    )  # fmt: skip
    show(
        f"the lowest loss is at w0 = {found.lowest:g}",
        f"the sum of the terms is at most {found.terms_difference:.1e} off the loss, and slopes at "
        f"most {found.slopes_difference:.1e} off differences",
    )


def convexity(
    dataset: DatasetFlag = "cifar10",
    examples: ImagesFlag = 200,
    segments: Annotated[int, typer.Option(help="Random segments for each loss.")] = 50,
    seed: SeedFlag = 0,
    plot: PlotFlag = None,
    json: JsonFlag = False,
) -> None:
    """The losses are convex in W, along every segment; those of two layers are not.

    Example: distsgd study convexity --dataset sample --plot convexity.png
    """
    from distsgd.lecture.experiments.convexity import check_convexity, draw_convexity

    checked(plot)
    found = check_convexity(dataset, examples=examples, segments=segments, seed=seed)
    drawn(plot, draw_convexity, found)
    if json:
        print_json(found)
        return
    print_table(
        ("model", "loss", "most above the chord"),
        [(one.model, one.loss, f"{one.excess:.1e}") for one in found.shown],
    )
    show(
        f"linear: of {2 * found.segments} segments, at most {found.worst_linear:.1e}",
        f"two layers: for each loss, a segment with {found.least_two_layers:.4g} or more",
    )


def chain_rule(plot: PlotFlag = None, json: JsonFlag = False) -> None:
    """The chain rule worked through: numbers, several paths, vectors and their Jacobian.

    Example: distsgd study chain-rule --plot graphs.png
    """
    from distsgd.lecture.draw_graphs import draw_chain_rule
    from distsgd.lecture.plain.chain_rule import worked_examples

    checked(plot)
    found = worked_examples()
    drawn(plot, draw_chain_rule, found)
    if json:
        print_json(found)
        return
    for example in found.examples:
        print_table(
            ("", "value", "gradient", "by differences"),
            [
                (one.name, f"{one.value:.4g}", f"{one.gradient:.6g}",
                 "-" if one.numerical is None else f"{one.numerical:.6g}")
                for one in example.quantities
            ],
            title=f"{example.name}: {example.formula}",
        )  # fmt: skip
    show(
        f"at most {found.largest_difference:.1e} off differences; through softmax, at most "
        f"{found.softmax_difference:.1e} off p - 1(j = y)"
    )


def formulas(
    dataset: DatasetFlag = "cifar10",
    examples: ImagesFlag = 20,
    seed: SeedFlag = 0,
    plot: PlotFlag = None,
    json: JsonFlag = False,
) -> None:
    """Each formula of the gradient beside the fast code of training, and beside differences.

    Example: distsgd study formulas --dataset sample --plot formulas.png
    """
    from distsgd.lecture.experiments.compare_formulas import compare_formulas, draw_formulas

    checked(plot)
    found = compare_formulas(dataset, examples=examples, seed=seed)
    drawn(plot, draw_formulas, found)
    if json:
        print_json(found)
        return
    print_table(
        ("loss", "images", "dL_i/dW off training's", "their mean", "dL_i/ds off differences"),
        [
            (row.loss, count(row.examples), f"{row.of_an_example:.1e}", f"{row.of_the_mean:.1e}",
             f"{row.numerical:.1e}")
            for row in found.rows
        ],
    )  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (loss, hinges, convexity, chain_rule, formulas):
        app.command()(command)
