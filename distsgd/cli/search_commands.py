"""``distsgd search random|local``, ``gradient numeric`` and ``stepsize``: the three strategies."""

from __future__ import annotations

from math import isnan
from typing import Annotated

import typer

from distsgd.cli.output import (
    JsonFlag,
    count,
    percent,
    print_json,
    print_pairs,
    print_table,
    say,
    show,
)
from distsgd.cli.study_options import (
    DatasetFlag,
    ExamplesFlag,
    LossFlag,
    PlotFlag,
    SeedFlag,
    WorkersFlag,
    checked,
    drawn,
    reals,
)

__all__ = ["add_to"]

search = typer.Typer(no_args_is_help=True, help="Look for W without a gradient.")
gradient = typer.Typer(no_args_is_help=True, help="The gradient by small differences.")


@search.command("random")
def random_(
    attempts: Annotated[int, typer.Option(help="How many W to try.")] = 1_000,
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "svm",
    examples: ExamplesFlag = None,
    workers: WorkersFlag = 2,
    seed: SeedFlag = 0,
    plot: PlotFlag = None,
    json: JsonFlag = False,
) -> None:
    """Strategy 1: try random W and keep the best; the same answer for any number of workers.

    Example: distsgd search random --dataset sample --attempts 200 --workers 0
    """
    from distsgd.lecture.experiments.random_search import draw_random_search, random_search

    checked(plot)
    found = random_search(
        dataset, attempts=attempts, loss=loss, examples=examples, workers=workers, seed=seed,
        progress=lambda done, best: say(f"{done:,} attempts, best loss {best:.4f}"),
    )  # fmt: skip
    drawn(plot, draw_random_search, found)
    if json:
        print_json(found)
        return
    print_pairs([
        ("attempts", f"{count(len(found.losses))}, each on {count(found.examples)} examples"),
        ("losses", f"{min(found.losses):.4f} to {max(found.losses):.4f}"),
        ("best", f"attempt {count(found.best_attempt + 1)}, loss {found.best_loss:.4f}"),
        ("training accuracy", percent(found.train_accuracy)),
        ("test accuracy", percent(found.test_accuracy)),
    ])  # fmt: skip


@search.command()
def local(
    tries: Annotated[int, typer.Option(help="How many steps to try.")] = 1_000,
    step: Annotated[float, typer.Option(help="Length of a step, for each entry of W.")] = 1e-4,
    scale: Annotated[float, typer.Option(help="Standard deviation of the first W.")] = 1e-4,
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "svm",
    examples: ExamplesFlag = None,
    workers: WorkersFlag = 2,
    seed: SeedFlag = 0,
    plot: PlotFlag = None,
    json: JsonFlag = False,
) -> None:
    """Strategy 2: steps in random directions, each taken when the loss falls.

    Example: distsgd search local --dataset sample --tries 200 --workers 0
    """
    from distsgd.lecture.experiments.local_search import draw_local_search, local_search

    checked(plot)
    found = local_search(
        dataset, tries=tries, step=step, scale=scale, loss=loss, examples=examples,
        workers=workers, seed=seed,
        progress=lambda done, best: say(f"{done:,} tries, loss {best:.4f}"),
    )  # fmt: skip
    drawn(plot, draw_local_search, found)
    if json:
        print_json(found)
        return
    print_pairs([
        ("tries", f"{count(len(found.losses) - 1)}, {count(len(found.taken))} of them taken"),
        ("loss", f"{found.losses[0]:.4f}, then {found.losses[-1]:.4f}"),
        ("training accuracy", percent(found.train_accuracy)),
        ("test accuracy", percent(found.test_accuracy)),
    ])  # fmt: skip


@gradient.command()
def numeric(
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "svm",
    examples: Annotated[int, typer.Option(help="That the loss is a mean over.")] = 500,
    h: Annotated[float, typer.Option("--h", help="Length of the step.")] = 1e-5,
    steps: Annotated[
        str, typer.Option(help="h for the curve of the error, with commas between.")
    ] = "1e-1,1e-2,1e-3,1e-4,1e-5,1e-6,1e-7,1e-8,1e-9,1e-10,1e-11,1e-12",
    parameters: Annotated[
        int | None, typer.Option(help="Only the first so many entries of W. (default: all)")
    ] = None,
    workers: WorkersFlag = 2,
    seed: SeedFlag = 0,
    plot: PlotFlag = None,
    json: JsonFlag = False,
) -> None:
    """Strategy 3 without calculus: 30,731 evaluations of the loss for one gradient.

    One-sided and central differences of every entry of W, spread over the workers, beside the
    analytic gradient; then the error as a function of h. Entries with a kink of the SVM loss
    within h get a shorter step, and are counted.

    Example: distsgd gradient numeric --dataset sample --examples 100 --parameters 500 --workers 0
    """
    from distsgd.lecture.experiments.gradient_numeric import draw_numeric_gradient, numeric_gradient

    checked(plot)
    found = numeric_gradient(
        dataset, loss=loss, examples=examples, h=h, steps=reals("--steps", steps),
        parameters=parameters, workers=workers, seed=seed,
        progress=lambda done, total: say(f"{done:,} of {total:,} entries"),
    )  # fmt: skip
    drawn(plot, draw_numeric_gradient, found)
    if json:
        print_json(found)
        return
    print_table(
        ("differences", "entries", "evaluations", "relative error", "of an entry",
         "shorter steps", "seconds"),
        [
            (row.scheme, count(row.parameters), count(row.evaluations),
             f"{row.relative_error:.1e}", f"{row.largest_error:.1e}", count(row.shorter_steps),
             f"{row.seconds:.1f}")
            for row in found.rows
        ],
    )  # fmt: skip
    print_table(
        ("h", *(curve.scheme for curve in found.curves)),
        [
            (f"{step:g}", *(f"{curve.relative_errors[i]:.1e}" for curve in found.curves))
            for i, step in enumerate(found.curves[0].steps)
        ],
    )
    show(f"the analytic gradient takes {1000 * found.analytic_seconds:.1f} ms")


def stepsize(
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "svm",
    steps: Annotated[
        str, typer.Option(help="Step sizes, with commas between.")
    ] = "1e-10,1e-9,1e-8,1e-7,1e-6,1e-5,1e-4,1e-3,1e-2,1e-1",
    examples: ExamplesFlag = None,
    workers: WorkersFlag = 0,
    seed: SeedFlag = 0,
    plot: PlotFlag = None,
    json: JsonFlag = False,
) -> None:
    """The effect of the step size: the loss after one step of each size.

    Example: distsgd stepsize --dataset sample --plot steps.png
    """
    from distsgd.lecture.experiments.step_size import draw_step_sizes, step_sizes

    checked(plot)
    found = step_sizes(
        dataset, loss=loss, steps=reals("--steps", steps), examples=examples, workers=workers,
        seed=seed,
    )  # fmt: skip
    drawn(plot, lambda one: draw_step_sizes([one]), found)
    if json:
        print_json(found)
        return
    print_table(
        ("step size", "loss"),
        [(f"{step:g}", f"{after:.6g}") for step, after in
         zip(found.steps, found.losses, strict=True)],
    )  # fmt: skip
    ratios = ", ".join("-" if isnan(one) else f"{one:.4g}" for one in found.last_ratios)
    show(
        f"before: {found.loss_before:.6g}; best: a step of {found.best_step:g}",
        f"the three largest steps give {ratios} times the loss of the step before",
    )


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(search, name="search")
    app.add_typer(gradient, name="gradient")
    app.command()(stepsize)
