"""``distsgd landscape``: the loss along a line, or over a plane."""

from __future__ import annotations

from typing import Annotated

import typer

from distsgd.cli.output import JsonFlag, count, percent, print_json, print_pairs
from distsgd.cli.study_options import PlotFlag, SeedFlag, WorkersFlag, checked, drawn

__all__ = ["add_to"]


def landscape(
    dataset: Annotated[
        str | None, typer.Option(help="cifar10, sample, or a folder. (default: the run's; cifar10)")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="softmax or svm. (default: the run's; svm)")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Around the last W of this run, with its path.")
    ] = None,
    along: Annotated[
        list[str] | None,
        typer.Option(
            help="A direction: random:SEED, weights, gradient, run:RUN, pca1 or pca2 (of --run). "
            "Once for a line, twice for a plane."
        ),
    ] = None,
    points: Annotated[int, typer.Option(help="Along each direction.")] = 41,
    extent: Annotated[
        float | None,
        typer.Option(help="From -extent to extent. (default: 10, or what the path takes)"),
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
    plot: PlotFlag = None,
    json: JsonFlag = False,
) -> None:
    """The loss around W: L(W + a W1) along a line, L(W + a W1 + b W2) over a plane.

    Directions have length 1. With --run, the plane is the one that its path goes along most.

    Example: distsgd landscape --dataset sample --workers 0 --plot plane.png
    """
    from distsgd.lecture.experiments.draw_landscape import draw_landscape
    from distsgd.lecture.experiments.landscape import landscape as compute

    checked(plot)
    found = compute(
        dataset, loss=loss, run=run, along=along or (), points=points, extent=extent,
        examples=examples, example=example, scale=scale, regularization=regularization,
        workers=workers, seed=seed,
    )  # fmt: skip
    drawn(plot, draw_landscape, found)
    if json:
        print_json(found)
        return
    highest = max(max(row) for row in found.losses)
    pairs = [
        ("around", found.around),
        ("along", " and ".join(found.along)),
        ("loss", f"{found.loss}, of {count(found.examples)} examples"),
        ("points", f"{count(len(found.a) * len(found.b))}"),
        ("a", f"{found.a[0]:g} to {found.a[-1]:g}"),
    ]
    if len(found.b) > 1:
        pairs.append(("b", f"{found.b[0]:g} to {found.b[-1]:g}"))
    a, b = found.lowest_at
    pairs.append(("lowest", f"{found.lowest:.6g} at a = {a:g}, b = {b:g}"))
    pairs.append(("highest", f"{highest:.6g}"))
    if found.path_share is not None:
        pairs.append(
            (
                "path",
                f"{len(found.path)} checkpoints, {percent(found.path_share)} of it in the plane",
            )
        )
    if len(found.b) == 1 and found.loss == "svm" and found.examples == 1:
        pairs.append(("kinks", count(found.kinks)))
    print_pairs(pairs)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(landscape)
