"""``distsgd study descent|copies|noise|minibatch-size|sampling``: all about minibatches."""

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
)

__all__ = ["add_to"]


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
    from distsgd.lecture.experiments.compare_descents import compare_descents, draw_descents

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
    from distsgd.lecture.experiments.copies import compare_copies, draw_copies

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
    from distsgd.lecture.experiments.minibatch_noise import draw_minibatch_noise, minibatch_noise

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
    from distsgd.lecture.experiments.minibatch_size import compare_sizes, draw_sizes

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
    from distsgd.lecture.experiments.sampling import compare_samplings, draw_samplings

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


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (descent, copies, noise, minibatch_size, sampling):
        app.command()(command)
