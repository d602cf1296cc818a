"""``distsgd lecture``, and its larger experiments.

``distsgd search random|local``, ``gradient numeric`` and ``stepsize`` are the lecture's three
strategies; ``landscape`` computes the loss along a line or over a plane.
"""

from __future__ import annotations

from math import isnan
from pathlib import Path
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
    SeedFlag,
    Steps,
    WorkersFlag,
    experiment,
    reals,
)

__all__ = ["add_to"]


def lecture(
    quick: Annotated[bool, typer.Option("--quick", help="Take a minute and a half.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = Path("lecture"),
    lang: Annotated[str, typer.Option(help="Language: en or ko.")] = "en",
    only: Annotated[list[str] | None, typer.Option(help="Only this chapter; repeatable.")] = None,
    dataset: DatasetFlag = "cifar10",
    workers: WorkersFlag = 2,
    seed: SeedFlag = 0,
    json: JsonFlag = False,
) -> None:
    """Compute the whole lecture on one page: check every number, draw every figure.

    Writes OUT/lecture-LANG.html, which needs no network. Exits with 1 if a number is wrong. Numbers
    that hold for CIFAR-10 are checked on CIFAR-10 only.

    Example: distsgd lecture --quick --dataset sample --workers 0
    """
    from distsgd.lecture.page.findings import Options
    from distsgd.lecture.page.html import lecture_page, page_path, write_page
    from distsgd.lecture.page.lecture import give_lecture

    path = page_path(out, lang)
    options = Options(dataset=dataset, quick=quick, workers=workers, seed=seed, say=say)
    result = give_lecture(options, only or ())
    write_page(path, lecture_page(result, lang))
    if json:
        print_json({"page": str(path), **result.summary()})
    else:
        print_table(
            ("chapter", "numbers", "failed", "seconds"),
            [
                (one.key, str(len(one.checks)),
                 ", ".join(check.key for check in one.checks if check.passed is False) or "-",
                 f"{one.seconds:.1f}")
                for one in result.chapters
            ],
        )  # fmt: skip
        print_pairs([
            ("passed", f"{result.passed} of {result.passed + result.failed}"),
            ("page", str(path)),
        ])  # fmt: skip
    if result.failed:
        say(f"{result.failed} numbers are wrong: see {path}")
        raise typer.Exit(1)


search = typer.Typer(no_args_is_help=True, help="Search for W without a gradient.")
gradient = typer.Typer(no_args_is_help=True, help="Compute the gradient by differences.")


@search.command("random")
@experiment
def random_(
    attempts: Annotated[int, typer.Option(help="Random W to try.")] = 1_000,
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "svm",
    examples: ExamplesFlag = None,
    workers: WorkersFlag = 2,
    seed: SeedFlag = 0,
) -> Steps:
    """Strategy 1: try random W and keep the best.

    Example: distsgd search random --dataset sample --attempts 200 --workers 0
    """
    from distsgd.lecture.experiments import draw_random_search, random_search

    result = random_search(
        dataset, attempts=attempts, loss=loss, examples=examples, workers=workers, seed=seed,
        progress=lambda done, best: say(f"{done:,} attempts, best loss {best:.4f}"),
    )  # fmt: skip
    yield result, draw_random_search
    print_pairs([
        ("attempts", f"{count(len(result.losses))}, each on {count(result.examples)} examples"),
        ("losses", f"{min(result.losses):.4f} to {max(result.losses):.4f}"),
        ("best", f"attempt {count(result.best_attempt + 1)}, loss {result.best_loss:.4f}"),
        ("training accuracy", percent(result.train_accuracy)),
        ("test accuracy", percent(result.test_accuracy)),
    ])  # fmt: skip


@search.command()
@experiment
def local(
    tries: Annotated[int, typer.Option(help="Steps to try.")] = 1_000,
    step: Annotated[float, typer.Option(help="Length of a step, for each entry of W.")] = 1e-4,
    scale: Annotated[float, typer.Option(help="Standard deviation of the initial W.")] = 1e-4,
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "svm",
    examples: ExamplesFlag = None,
    workers: WorkersFlag = 2,
    seed: SeedFlag = 0,
) -> Steps:
    """Strategy 2: take steps in random directions if the loss falls.

    Example: distsgd search local --dataset sample --tries 200 --workers 0
    """
    from distsgd.lecture.experiments import draw_local_search, local_search

    result = local_search(
        dataset, tries=tries, step=step, scale=scale, loss=loss, examples=examples,
        workers=workers, seed=seed,
        progress=lambda done, best: say(f"{done:,} tries, loss {best:.4f}"),
    )  # fmt: skip
    yield result, draw_local_search
    print_pairs([
        ("tries", f"{count(len(result.losses) - 1)}, {count(len(result.taken))} of them taken"),
        ("loss", f"{result.losses[0]:.4f}, then {result.losses[-1]:.4f}"),
        ("training accuracy", percent(result.train_accuracy)),
        ("test accuracy", percent(result.test_accuracy)),
    ])  # fmt: skip


@gradient.command()
@experiment
def numeric(
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "svm",
    examples: Annotated[int, typer.Option(help="Training examples of the mean loss.")] = 500,
    h: Annotated[float, typer.Option("--h", help="Step of the differences.")] = 1e-5,
    steps: Annotated[
        str, typer.Option(help="Values of h for the error curve, comma-separated.")
    ] = "1e-1,1e-2,1e-3,1e-4,1e-5,1e-6,1e-7,1e-8,1e-9,1e-10,1e-11,1e-12",
    parameters: Annotated[
        int | None, typer.Option(help="Only the first entries of W, this many. (default: all)")
    ] = None,
    workers: WorkersFlag = 2,
    seed: SeedFlag = 0,
) -> Steps:
    """Strategy 3 without calculus: 30,731 evaluations of the loss for one gradient.

    Compares one-sided and central differences of every entry of W, spread over the workers, with
    the analytic gradient, and shows the error as a function of h. Entries with a kink of the SVM
    loss within h use a shorter step and are counted.

    Example: distsgd gradient numeric --dataset sample --examples 100 --parameters 500 --workers 0
    """
    from distsgd.lecture.experiments import draw_numeric_gradient, numeric_gradient

    result = numeric_gradient(
        dataset, loss=loss, examples=examples, h=h, steps=reals("--steps", steps),
        parameters=parameters, workers=workers, seed=seed,
        progress=lambda done, total: say(f"{done:,} of {total:,} entries"),
    )  # fmt: skip
    yield result, draw_numeric_gradient
    print_table(
        ("differences", "entries", "evaluations", "relative error", "of an entry",
         "shorter steps", "seconds"),
        [
            (row.scheme, count(row.parameters), count(row.evaluations),
             f"{row.relative_error:.1e}", f"{row.largest_error:.1e}", count(row.shorter_steps),
             f"{row.seconds:.1f}")
            for row in result.rows
        ],
    )  # fmt: skip
    print_table(
        ("h", *(curve.scheme for curve in result.curves)),
        [
            (f"{step:g}", *(f"{curve.relative_errors[i]:.1e}" for curve in result.curves))
            for i, step in enumerate(result.curves[0].steps)
        ],
    )
    show(f"the analytic gradient takes {1000 * result.analytic_seconds:.1f} ms")


@experiment
def stepsize(
    dataset: DatasetFlag = "cifar10",
    loss: LossFlag = "svm",
    steps: Annotated[
        str, typer.Option(help="Step sizes, comma-separated.")
    ] = "1e-10,1e-9,1e-8,1e-7,1e-6,1e-5,1e-4,1e-3,1e-2,1e-1",
    examples: ExamplesFlag = None,
    workers: WorkersFlag = 0,
    seed: SeedFlag = 0,
) -> Steps:
    """Show the effect of the step size: the loss after one step of each size.

    Example: distsgd stepsize --dataset sample --plot steps.png
    """
    from distsgd.lecture.experiments import draw_step_sizes, step_sizes

    result = step_sizes(
        dataset, loss=loss, steps=reals("--steps", steps), examples=examples, workers=workers,
        seed=seed,
    )  # fmt: skip
    yield result, lambda one: draw_step_sizes([one])
    print_table(
        ("step size", "loss"),
        [(f"{step:g}", f"{after:.6g}") for step, after in
         zip(result.steps, result.losses, strict=True)],
    )  # fmt: skip
    ratios = ", ".join("-" if isnan(one) else f"{one:.4g}" for one in result.last_ratios)
    show(
        f"before: {result.loss_before:.6g}; best: a step of {result.best_step:g}",
        f"each of the three largest steps multiplies the previous step's loss by {ratios}",
    )


@experiment
def landscape(
    dataset: Annotated[
        str | None, typer.Option(help="cifar10, sample, or a folder. (default: the run's; cifar10)")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="softmax or svm. (default: the run's; svm)")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Centre on the final W of this run, and show its path.")
    ] = None,
    along: Annotated[
        list[str] | None,
        typer.Option(
            help="A direction: random:SEED, weights, gradient, run:RUN, pca1 or pca2 (of --run); "
            "once for a line, twice for a plane."
        ),
    ] = None,
    points: Annotated[int, typer.Option(help="Points along each direction.")] = 41,
    extent: Annotated[
        float | None,
        typer.Option(help="Range: from -extent to extent. (default: 10, or that of the path)"),
    ] = None,
    examples: Annotated[
        int | None, typer.Option(help="Training examples to measure on. (default: 2,000)")
    ] = None,
    example: Annotated[
        int | None, typer.Option(help="Only this training example, counted from 0.")
    ] = None,
    scale: Annotated[float, typer.Option(help="Standard deviation of random W.")] = 1e-4,
    regularization: Annotated[
        float | None, typer.Option(help="λ of the L2 penalty. (default: the run's; 0)")
    ] = None,
    workers: WorkersFlag = 2,
    seed: SeedFlag = 0,
) -> Steps:
    """Compute the loss around W: L(W + a W1) along a line, L(W + a W1 + b W2) over a plane.

    Directions have length 1. With --run, the plane is that of the path's principal components.

    Example: distsgd landscape --dataset sample --workers 0 --plot plane.png
    """
    from distsgd.lecture.experiments import draw_landscape
    from distsgd.lecture.experiments import landscape as compute

    result = compute(
        dataset, loss=loss, run=run, along=along or (), points=points, extent=extent,
        examples=examples, example=example, scale=scale, regularization=regularization,
        workers=workers, seed=seed,
    )  # fmt: skip
    yield result, draw_landscape
    highest = max(max(row) for row in result.losses)
    pairs = [
        ("around", result.around),
        ("along", " and ".join(result.along)),
        ("loss", f"{result.loss}, of {count(result.examples)} examples"),
        ("points", f"{count(len(result.a) * len(result.b))}"),
        ("a", f"{result.a[0]:g} to {result.a[-1]:g}"),
    ]
    if len(result.b) > 1:
        pairs.append(("b", f"{result.b[0]:g} to {result.b[-1]:g}"))
    a, b = result.lowest_at
    pairs.append(("lowest", f"{result.lowest:.6g} at a = {a:g}, b = {b:g}"))
    pairs.append(("highest", f"{highest:.6g}"))
    if result.path_share is not None:
        share = percent(result.path_share)
        pairs.append(("path", f"{len(result.path)} checkpoints, {share} of it in the plane"))
    if len(result.b) == 1 and result.loss == "svm" and result.examples == 1:
        pairs.append(("kinks", count(result.kinks)))
    print_pairs(pairs)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(search, name="search")
    app.add_typer(gradient, name="gradient")
    for command in (stepsize, landscape, lecture):
        app.command()(command)
