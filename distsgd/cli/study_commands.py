"""``distsgd study``: the smaller experiments of the lecture, one command each.

``distsgd study loss|hinges|convexity|chain-rule|formulas``: losses and their gradients.

``distsgd study descent|copies|noise|minibatch-size|sampling``: all about minibatches.
"""

from __future__ import annotations

from math import isnan
from typing import Annotated

import typer

from distsgd.cli.output import JsonFlag, count, percent, print_json, print_table, say, show
from distsgd.cli.study_options import (
    DatasetFlag,
    ExamplesFlag,
    LossFlag,
    PlotFlag,
    SeedFlag,
    WorkersFlag,
    checked,
    drawn,
    numbers,
    reals,
)

__all__ = ["app"]


app = typer.Typer(no_args_is_help=True, help="The lecture's experiments, one by one.")

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
    from distsgd.lecture.experiments.piecewise import draw_hinges
    from distsgd.lecture.experiments.piecewise import hinges as take_apart

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
    from distsgd.lecture.experiments.piecewise import check_convexity, draw_convexity

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
    from distsgd.lecture.drawing import draw_chain_rule
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
    from distsgd.lecture.experiments.gradients import compare_formulas, draw_formulas

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


def descent(
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "softmax",
    epochs: Annotated[int, typer.Option(help="Passes over the training set for each.")] = 5,
    workers: WorkersFlag = 0,
    seed: SeedFlag = 0,
    plot: PlotFlag = None,
    json: JsonFlag = False,
) -> None:
    """Gradient descent, minibatches of 256, single examples: the same service, side by side.

    Example: distsgd study descent --dataset sample --epochs 3 --plot descent.png
    """
    from distsgd.lecture.experiments.compare_trainings import compare_descents, draw_descents

    checked(plot)
    found = compare_descents(dataset, loss=loss, epochs=epochs, workers=workers, seed=seed, say=say)
    drawn(plot, draw_descents, found)
    if json:
        print_json(found)
        return
    print_table(
        ("examples a step", "learning rate", "steps", "seconds", "images/s", "test accuracy"),
        [
            (count(one.batch_size), f"{one.learning_rate:g}", count(one.steps),
             f"{one.points[-1].seconds:.2f}", count(one.examples_per_second),
             percent(one.points[-1].test_accuracy))
            for one in found.descents
        ],
    )  # fmt: skip


def copies(
    dataset: DatasetFlag = "cifar10",
    originals: Annotated[int, typer.Option(help="Different images.")] = 1_000,
    times: Annotated[int, typer.Option(help="How often each occurs.")] = 1_200,
    seed: SeedFlag = 0,
    plot: PlotFlag = None,
    json: JsonFlag = False,
) -> None:
    """The gradient over 1.2 million images that are copies of 1,000 is that over the 1,000.

    Example: distsgd study copies --dataset sample --originals 100 --times 50
    """
    from distsgd.lecture.experiments.minibatch_gradients import compare_copies, draw_copies

    checked(plot)
    found = compare_copies(dataset, originals=originals, times=times, seed=seed)
    drawn(plot, draw_copies, found)
    if json:
        print_json(found)
        return
    print_table(
        ("loss", "relative difference", f"all {found.examples:,}", f"the {found.originals:,}"),
        [
            (row.loss, f"{row.relative_difference:.1e}", f"{row.seconds_all:.2f} s",
             f"{row.seconds_originals:.4f} s")
            for row in found.rows
        ],
    )  # fmt: skip


def noise(
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "softmax",
    sizes: Annotated[
        str, typer.Option(help="Minibatches, with commas between.")
    ] = "16,32,64,128,256,512,1024",
    draws: Annotated[int, typer.Option(help="Minibatches of each size.")] = 100,
    examples: ExamplesFlag = None,
    seed: SeedFlag = 0,
    plot: PlotFlag = None,
    json: JsonFlag = False,
) -> None:
    """How near a minibatch's gradient comes to the full one: cosine and variance.

    Example: distsgd study noise --dataset sample --sizes 16,64,256 --plot noise.png
    """
    from distsgd.lecture.experiments.minibatch_gradients import (
        draw_minibatch_noise,
        minibatch_noise,
    )

    checked(plot)
    found = minibatch_noise(
        dataset, loss=loss, sizes=numbers("--sizes", sizes), draws=draws, examples=examples,
        seed=seed,
    )  # fmt: skip
    drawn(plot, draw_minibatch_noise, found)
    if json:
        print_json(found)
        return
    print_table(
        ("minibatch", "cosine", "spread", "variance / |g|²", "expected"),
        [
            (count(row.batch_size), f"{row.cosine:.3f}", f"{row.cosine_spread:.3f}",
             f"{row.variance:.3f}", f"{row.expected_variance:.3f}")
            for row in found.rows
        ],
    )  # fmt: skip
    ratio = "-" if isnan(found.variance_ratio) else f"{found.variance_ratio:.4g}"
    show(f"variance over what is expected, in the mean: {ratio}")


def minibatch_size(
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "softmax",
    sizes: Annotated[
        str, typer.Option(help="Minibatches, with commas between.")
    ] = "16,32,64,100,128,200,256,512,1024",
    epochs: Annotated[int, typer.Option(help="Of each run.")] = 3,
    repeats: Annotated[int, typer.Option(help="Runs of each size, taking turns.")] = 2,
    workers: WorkersFlag = 0,
    seed: SeedFlag = 0,
    plot: PlotFlag = None,
    json: JsonFlag = False,
) -> None:
    """Throughput and accuracy of powers of two and of their neighbours.

    Example: distsgd study minibatch-size --dataset sample --sizes 64,100,128 --epochs 1
    """
    from distsgd.lecture.experiments.compare_trainings import compare_sizes, draw_sizes

    checked(plot)
    found = compare_sizes(
        dataset, loss=loss, sizes=numbers("--sizes", sizes), epochs=epochs, repeats=repeats,
        workers=workers, seed=seed, say=say,
    )  # fmt: skip
    drawn(plot, draw_sizes, found)
    if json:
        print_json(found)
        return
    print_table(
        ("minibatch", "steps", "images/s", "test accuracy", "with a scaled learning rate"),
        [
            (count(row.batch_size), count(row.steps), count(row.examples_per_second),
             percent(row.test_accuracy), percent(row.scaled_test_accuracy))
            for row in found.rows
        ],
    )  # fmt: skip


def sampling(
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "softmax",
    epochs: Annotated[int, typer.Option(help="Of each run.")] = 5,
    batch_size: Annotated[int, typer.Option(help="Of each run.")] = 256,
    workers: WorkersFlag = 0,
    seed: SeedFlag = 0,
    plot: PlotFlag = None,
    json: JsonFlag = False,
) -> None:
    """How minibatches are chosen: in order (also sorted by class), at random, shuffled.

    Example: distsgd study sampling --dataset sample --epochs 3 --plot sampling.png
    """
    from distsgd.lecture.experiments.compare_trainings import compare_samplings, draw_samplings

    checked(plot)
    found = compare_samplings(
        dataset, loss=loss, epochs=epochs, batch_size=batch_size, workers=workers, seed=seed,
        say=say,
    )  # fmt: skip
    drawn(plot, draw_samplings, found)
    if json:
        print_json(found)
        return
    print_table(
        ("minibatches", "never seen", "most often", "after epoch 1", f"after {found.epochs}"),
        [
            (row.name, percent(row.never_seen), f"{row.most_often} times",
             percent(row.test_accuracy[0]), percent(row.test_accuracy[-1]))
            for row in found.rows
        ],
    )  # fmt: skip


for command in (
    loss, hinges, convexity, chain_rule, formulas,
    descent, copies, noise, minibatch_size, sampling,
):  # fmt: skip
    app.command()(command)
