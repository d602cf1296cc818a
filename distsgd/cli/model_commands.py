"""``distsgd evaluate``, ``predict`` and ``gradcheck``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from distsgd.cli.output import JsonFlag, count, percent, print_json, print_pairs, print_table, show
from distsgd.cli.settings import Run
from distsgd.errors import UsageError

__all__ = ["add_to"]

Best = Annotated[
    bool,
    typer.Option("--best", help="Use the epoch with the best validation accuracy, not the newest."),
]


def evaluate(
    run: Run,
    dataset: Annotated[
        str | None,
        typer.Option(help="Another dataset; columns and classes are matched by name."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Examples to measure: test, train or validation.")
    ] = "test",
    best: Best = False,
    json: JsonFlag = False,
) -> None:
    """Measure the loss and accuracy of a run on its test or training set.

    The newest checkpoint counts, or with --best that of the best epoch by the validation rows.

    Example: distsgd evaluate latest --split train
    """
    from distsgd.cli.run_kernel import multiply_as
    from distsgd.training.evaluation import SPLITS
    from distsgd.training.evaluation import evaluate as measure

    multiply_as(run)
    if split not in SPLITS:
        raise UsageError(f"--split cannot be {split}", "Give test, train or validation")
    found = measure(run, dataset=dataset, split=split, best=best)
    if json:
        print_json(found)
        return
    print_pairs([
        ("accuracy", percent(found.accuracy)),
        ("loss", f"{found.loss:.4f}"),
        ("examples", f"{count(found.examples)} ({found.split}, {found.dataset})"),
        ("run", found.run_dir),
        ("step", count(found.step) + (" (still running)" if found.running else "")),
        ("weights", f"sha256 {found.weights_sha256}"),
    ])  # fmt: skip
    print_table(
        ("class", "accuracy"),
        [(name, percent(share)) for name, share in found.class_accuracy.items()],
    )


def predict(
    run: Run,
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Image files of any format and size; or CSV or Parquet files for tables."
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 3,
    best: Best = False,
    json: JsonFlag = False,
) -> None:
    """Classify images, or rows of a CSV or Parquet file, with the newest checkpoint of a run.

    Example: distsgd predict latest photo.jpg
    """
    from distsgd.training.evaluation import predict as classify

    found = classify(run, images, top=top, best=best)
    if json:
        print_json({"predictions": [asdict(one) for one in found]})
        return
    rows = [
        (one.image, *(f"{name} {percent(share)}" for name, share in zip(
            one.classes, one.probabilities, strict=True)))
        for one in found
    ]  # fmt: skip
    print_table(("image", *(f"#{i + 1}" for i in range(len(found[0].classes)))), rows)


def gradcheck(
    loss: Annotated[str | None, typer.Option(help="softmax or svm; both if left out.")] = None,
    model: Annotated[str, typer.Option(help="linear, or mlp:HIDDEN, as mlp:20.")] = "linear",
    dataset: Annotated[str, typer.Option(help="Where the images come from.")] = "sample",
    examples: Annotated[int, typer.Option(help="How many images.")] = 100,
    parameters: Annotated[int, typer.Option(help="How many entries of W.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of W and of the entries.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Compare analytic gradients with central differences, in float64; exit code 1 if they differ.

    The SVM loss has kinks, where it has no gradient, and so have hidden units: entries of W with
    a kink within two steps are left out and counted.

    Example: distsgd gradcheck --loss svm

    Example: distsgd gradcheck --model mlp:20
    """
    from distsgd.lecture.experiments import LIMIT
    from distsgd.lecture.experiments import gradcheck as check

    rows = list(check(
        loss, model=model, dataset=dataset, examples=examples, parameters=parameters, seed=seed
    ))  # fmt: skip
    worst = max(row.largest_relative_error for row in rows)
    passed = all(row.passed for row in rows)
    if json:
        print_json({
            "largest_relative_error": worst, "limit": LIMIT, "passed": passed,
            "cases": [asdict(row) for row in rows],
        })  # fmt: skip
    else:
        print_table(
            ("loss", "lambda", "W", "largest relative error", "compared", "at kinks", ""),
            [
                (row.loss, f"{row.regularization:g}", row.weights,
                 f"{row.largest_relative_error:.1e}", str(row.compared), str(row.skipped),
                 "ok" if row.passed else "FAILED")
                for row in rows
            ],
        )  # fmt: skip
        show(f"largest relative error {worst:.1e} (limit {LIMIT:.0e})")
    if not passed:
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (evaluate, predict, gradcheck):
        app.command()(command)
