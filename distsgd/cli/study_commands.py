"""``distsgd study``: the smaller experiments of the lecture, one command each.

`loss`, `hinges`, `convexity`, `chain-rule` and `formulas` are about losses and their gradients;
`descent`, `copies`, `noise`, `minibatch-size` and `sampling` about minibatches.
"""

from __future__ import annotations

from math import isnan
from typing import Annotated

import typer

from distsgd.cli.output import count, percent, print_table, say, show
from distsgd.cli.study_options import (
    DatasetFlag,
    ExamplesFlag,
    LossFlag,
    SeedFlag,
    Steps,
    WorkersFlag,
    experiment,
    integers,
    reals,
)

__all__ = ["app"]


app = typer.Typer(no_args_is_help=True, help="Run one of the lecture's smaller experiments.")

ImagesFlag = Annotated[int, typer.Option("--examples", help="Training images to use.")]


def loss(
    dataset: DatasetFlag = "cifar10",
    examples: ImagesFlag = 1_000,
    scales: Annotated[
        str, typer.Option(help="Standard deviations of W, comma-separated.")
    ] = "1e-6,1e-5,1e-4,1e-3,1e-2",
    seed: SeedFlag = 0,
) -> Steps:
    """Show the scores and losses of random W: 9 and ln 10 while W is small.

    Example: distsgd study loss --dataset sample --plot loss.png
    """
    from distsgd.lecture.experiments import draw_initial_loss, initial_loss

    result = initial_loss(dataset, examples=examples, scales=reals("--scales", scales), seed=seed)
    yield result, draw_initial_loss
    print_table(
        ("standard deviation of W", "of the scores", "SVM loss", "softmax loss"),
        [
            (f"{row.scale:g}", f"{row.score_spread:.3g}", f"{row.svm:.4g}", f"{row.softmax:.4g}")
            for row in result.rows
        ],
    )
    show(f"for small W: {result.expected_svm:g} and {result.expected_softmax:.4f}")


def hinges(
    points: Annotated[
        str, typer.Option(help="x of the classes 0, 1 and 2, comma-separated.")
    ] = "1,-0.5,2",
    weights: Annotated[str, typer.Option(help="w1 and w2, comma-separated.")] = "0.5,-1",
) -> Steps:
    """Show that the SVM loss of three points is piecewise linear: its terms and its kinks.

    Example: distsgd study hinges --plot hinges.png
    """
    from distsgd.lecture.experiments import draw_hinges
    from distsgd.lecture.experiments import hinges as take_apart

    result = take_apart(reals("--points", points), reals("--weights", weights))
    yield result, draw_hinges
    print_table(
        ("term", "slope", "at w0 = 0", "kink at w0"),
        [
            (f"point {term.example} against class {term.other}", f"{term.slope:g}",
             f"{term.intercept:g}", "-" if term.kink is None else f"{term.kink:g}")
            for term in result.terms
        ],
    )  # fmt: skip
    print_table(
        ("kink at w0", "loss", "subgradients from", "to", "used"),
        [
            (f"{kink.w0:g}", f"{kink.loss:.4f}", f"{kink.left:.4f}", f"{kink.right:.4f}",
             f"{kink.used:.4f}")
            for kink in result.kinks
        ],
    )  # fmt: skip
    show(
        f"the lowest loss is at w0 = {result.lowest:g}",
        f"largest error of the sum of the terms: {result.terms_difference:.1e}; of the slopes, "
        f"against differences: {result.slopes_difference:.1e}",
    )


def convexity(
    dataset: DatasetFlag = "cifar10",
    examples: ImagesFlag = 200,
    segments: Annotated[int, typer.Option(help="Random segments for each loss.")] = 50,
    seed: SeedFlag = 0,
) -> Steps:
    """Check that the losses are convex in W, and those of two layers are not.

    Example: distsgd study convexity --dataset sample --plot convexity.png
    """
    from distsgd.lecture.experiments import check_convexity, draw_convexity

    result = check_convexity(dataset, examples=examples, segments=segments, seed=seed)
    yield result, draw_convexity
    print_table(
        ("model", "loss", "largest excess over the chord"),
        [(one.model, one.loss, f"{one.excess:.1e}") for one in result.shown],
    )
    show(
        f"linear: at most {result.worst_linear:.1e} on {2 * result.segments} segments",
        f"two layers: at least {result.least_two_layers:.4g} on one segment for each loss",
    )


def chain_rule() -> Steps:
    """Work through the chain rule: numbers, several paths, vectors and their Jacobian.

    Example: distsgd study chain-rule --plot graphs.png
    """
    from distsgd.lecture.drawing import draw_chain_rule
    from distsgd.lecture.plain.chain_rule import worked_examples

    result = worked_examples()
    yield result, draw_chain_rule
    for example in result.examples:
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
        f"largest error against differences: {result.largest_difference:.1e}; of the gradient "
        f"through softmax against p - 1(j = y): {result.softmax_difference:.1e}"
    )


def formulas(
    dataset: DatasetFlag = "cifar10",
    examples: ImagesFlag = 20,
    seed: SeedFlag = 0,
) -> Steps:
    """Compare each formula of the gradient with training's fast code and with differences.

    Example: distsgd study formulas --dataset sample --plot formulas.png
    """
    from distsgd.lecture.experiments import compare_formulas, draw_formulas

    result = compare_formulas(dataset, examples=examples, seed=seed)
    yield result, draw_formulas
    print_table(
        ("loss", "images", "error of dL_i/dW", "of their mean", "of dL_i/ds"),
        [
            (row.loss, count(row.examples), f"{row.of_an_example:.1e}", f"{row.of_the_mean:.1e}",
             f"{row.numerical:.1e}")
            for row in result.rows
        ],
    )  # fmt: skip


def descent(
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "softmax",
    epochs: Annotated[int, typer.Option(help="Passes over the training set, for each.")] = 5,
    workers: WorkersFlag = 0,
    seed: SeedFlag = 0,
) -> Steps:
    """Compare gradient descent, minibatches of 256, and single examples.

    Example: distsgd study descent --dataset sample --epochs 3 --plot descent.png
    """
    from distsgd.lecture.experiments import compare_descents, draw_descents

    result = compare_descents(
        dataset, loss=loss, epochs=epochs, workers=workers, seed=seed, say=say
    )
    yield result, draw_descents
    print_table(
        ("examples a step", "learning rate", "steps", "seconds", "images/s", "test accuracy"),
        [
            (count(one.batch_size), f"{one.learning_rate:g}", count(one.steps),
             f"{one.points[-1].seconds:.2f}", count(one.examples_per_second),
             percent(one.points[-1].test_accuracy))
            for one in result.descents
        ],
    )  # fmt: skip


def copies(
    dataset: DatasetFlag = "cifar10",
    originals: Annotated[int, typer.Option(help="Distinct images.")] = 1_000,
    times: Annotated[int, typer.Option(help="Copies of each image.")] = 1_200,
    seed: SeedFlag = 0,
) -> Steps:
    """Show that the gradient over 1,200 copies of 1,000 images is that over the 1,000.

    Example: distsgd study copies --dataset sample --originals 100 --times 50
    """
    from distsgd.lecture.experiments import compare_copies, draw_copies

    result = compare_copies(dataset, originals=originals, times=times, seed=seed)
    yield result, draw_copies
    print_table(
        ("loss", "relative difference", f"all {result.examples:,}", f"the {result.originals:,}"),
        [
            (row.loss, f"{row.relative_difference:.1e}", f"{row.seconds_all:.2f} s",
             f"{row.seconds_originals:.4f} s")
            for row in result.rows
        ],
    )  # fmt: skip


def noise(
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "softmax",
    sizes: Annotated[
        str, typer.Option(help="Sizes of minibatches, comma-separated.")
    ] = "16,32,64,128,256,512,1024",
    draws: Annotated[int, typer.Option(help="Minibatches of each size.")] = 100,
    examples: ExamplesFlag = None,
    seed: SeedFlag = 0,
) -> Steps:
    """Measure how near a minibatch's gradient is to the full one: cosine and variance.

    Example: distsgd study noise --dataset sample --sizes 16,64,256 --plot noise.png
    """
    from distsgd.lecture.experiments import draw_minibatch_noise, minibatch_noise

    result = minibatch_noise(
        dataset, loss=loss, sizes=integers("--sizes", sizes), draws=draws, examples=examples,
        seed=seed,
    )  # fmt: skip
    yield result, draw_minibatch_noise
    print_table(
        ("minibatch", "cosine", "spread", "variance / |g|²", "expected"),
        [
            (count(row.batch_size), f"{row.cosine:.3f}", f"{row.cosine_spread:.3f}",
             f"{row.variance:.3f}", f"{row.expected_variance:.3f}")
            for row in result.rows
        ],
    )  # fmt: skip
    ratio = "-" if isnan(result.variance_ratio) else f"{result.variance_ratio:.4g}"
    show(f"mean ratio of the variance to the expected variance: {ratio}")


def minibatch_size(
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "softmax",
    sizes: Annotated[
        str, typer.Option(help="Sizes of minibatches, comma-separated.")
    ] = "16,32,64,100,128,200,256,512,1024",
    epochs: Annotated[int, typer.Option(help="Passes over the training set, for each run.")] = 3,
    repeats: Annotated[int, typer.Option(help="Runs of each size, interleaved.")] = 2,
    workers: WorkersFlag = 0,
    seed: SeedFlag = 0,
) -> Steps:
    """Measure throughput and accuracy of powers of two and their neighbours.

    Example: distsgd study minibatch-size --dataset sample --sizes 64,100,128 --epochs 1
    """
    from distsgd.lecture.experiments import compare_sizes, draw_sizes

    result = compare_sizes(
        dataset, loss=loss, sizes=integers("--sizes", sizes), epochs=epochs, repeats=repeats,
        workers=workers, seed=seed, say=say,
    )  # fmt: skip
    yield result, draw_sizes
    print_table(
        ("minibatch", "steps", "images/s", "test accuracy", "with a scaled learning rate"),
        [
            (count(row.batch_size), count(row.steps), count(row.examples_per_second),
             percent(row.test_accuracy), percent(row.scaled_test_accuracy))
            for row in result.rows
        ],
    )  # fmt: skip


def sampling(
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "softmax",
    epochs: Annotated[int, typer.Option(help="Passes over the training set, for each run.")] = 5,
    batch_size: Annotated[int, typer.Option(help="Examples of a minibatch.")] = 256,
    workers: WorkersFlag = 0,
    seed: SeedFlag = 0,
) -> Steps:
    """Compare ways to choose minibatches: in order, sorted by class, random, shuffled.

    Example: distsgd study sampling --dataset sample --epochs 3 --plot sampling.png
    """
    from distsgd.lecture.experiments import compare_samplings, draw_samplings

    result = compare_samplings(
        dataset, loss=loss, epochs=epochs, batch_size=batch_size, workers=workers, seed=seed,
        say=say,
    )  # fmt: skip
    yield result, draw_samplings
    print_table(
        ("minibatches", "never seen", "most often", "after epoch 1", f"after {result.epochs}"),
        [
            (row.name, percent(row.never_seen), f"{row.most_often} times",
             percent(row.test_accuracy[0]), percent(row.test_accuracy[-1]))
            for row in result.rows
        ],
    )  # fmt: skip


for command in (
    loss, hinges, convexity, chain_rule, formulas,
    descent, copies, noise, minibatch_size, sampling,
):  # fmt: skip
    app.command()(experiment(command))
