"""``distsgd evaluate``, ``predict`` and ``gradcheck``."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distsgd.cli.blame_commands import explain_file
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
from distsgd.cli.settings import Run
from distsgd.data.text_files import escaped
from distsgd.errors import SourceError, UsageError, storage_error

if TYPE_CHECKING:
    from distsgd.training.evaluation import Prediction

__all__ = ["add_to"]

Best = Annotated[
    bool,
    typer.Option("--best", help="Use the epoch with the best validation accuracy, not the newest."),
]

At = Annotated[
    str | None,
    typer.Option(
        help="Use W after this update, whether there is a checkpoint or not: a number, last-N, "
        "epoch:N. (default: the newest checkpoint)"
    ),
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
    at: At = None,
    json: JsonFlag = False,
) -> None:
    """Measure the loss and accuracy of a run on its test or training set.

    The newest checkpoint counts, or with --best that of the best epoch by the validation rows.

    Example: distsgd evaluate latest --split train

    Example: distsgd evaluate latest --at 20
    """
    from distsgd.cli.run_kernel import multiply_as
    from distsgd.training.evaluation import SPLITS
    from distsgd.training.evaluation import evaluate as measure

    multiply_as(run)
    if split not in SPLITS:
        raise UsageError(f"--split cannot be {split}", "Give test, train or validation")
    found = measure(run, dataset=dataset, split=split, best=best, at=at)
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
            help="Image files of any format and size; or CSV, Parquet or NPZ files for tables; "
            "- is CSV from stdin."
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 3,
    best: Best = False,
    at: At = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a CSV file, row by row, instead of a table.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="End at the first row that cannot be classified.")
    ] = False,
    explained: Annotated[
        bool,
        typer.Option(
            "--why",
            help="Find the training examples that the prediction of one image or row "
            "comes from; --out is then a picture of them.",
        ),
    ] = False,
    label: Annotated[
        str | None, typer.Option(help="With --why: explain the loss of this class instead.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Classify images, or rows of tables, with the newest checkpoint of a run.

    Rows that cannot be classified are skipped and listed on stderr; exit code 1 if no row is left.

    Example: distsgd predict latest photo.jpg

    Example: distsgd predict latest photo.jpg --why
    """
    from distsgd.cli.run_kernel import multiply_as
    from distsgd.training.evaluation import predict_files

    if explained:
        explain_file(run, images, label, out, best=best, at=at, json=json)
        return
    if label is not None:
        raise UsageError("--label goes with --why", "Give both, or neither")
    if at is not None:
        multiply_as(run)

    found: list[Prediction] = []
    rejected: list[tuple[str, str]] = []
    unknown: Mapping[str, int] = {}
    classified = skipped = 0
    with _written(out, top) as write:
        for batch in predict_files(run, images, top=top, best=best, at=at, strict=strict):
            classified, skipped = classified + len(batch.predictions), skipped + len(batch.rejected)
            unknown = batch.unknown
            room = len(batch.rejected) if json else max(0, _LISTED - len(rejected))
            rejected += batch.rejected[:room]
            if write is None:
                found += batch.predictions
            else:
                write(batch.predictions)
        if not classified and out is not None:
            raise _nothing(rejected, skipped)
    for where, why in rejected[:_LISTED]:
        say(f"skipped {escaped(where)}: {escaped(why)}")
    for column, words in unknown.items():
        say(f"note: {count(words)} words of column '{escaped(column)}' are unknown to the model")
    if skipped or out is not None:
        to = f" into {out}" if out is not None else ""
        say(f"{count(classified)} rows classified{to}, {count(skipped)} skipped")
    if json:
        print_json({
            "predictions": [asdict(one) for one in found], "classified": classified,
            "rejected": [{"where": where, "why": why} for where, why in rejected],
            **({} if out is None else {"out": str(out)}),
        })  # fmt: skip
    if not classified:
        raise _nothing(rejected, skipped)
    if not json and out is None:
        rows = [
            (one.image, *(f"{name} {percent(share)}" for name, share in zip(
                one.classes, one.probabilities, strict=True)))
            for one in found
        ]  # fmt: skip
        print_table(("image", *(f"#{i + 1}" for i in range(len(found[0].classes)))), rows)


_LISTED = 10
"""Skipped rows that are listed on stderr; --json lists all."""


def _nothing(rejected: list[tuple[str, str]], skipped: int) -> SourceError:
    """The error of a command that has classified nothing."""
    if not rejected:
        return SourceError("there are no rows to classify", "Give a file that has some")
    where, why = rejected[0]
    more = f" (and {count(skipped - 1)} more)" if skipped > 1 else ""
    return SourceError(f"no row can be classified: {where}: {why}{more}", "Correct the rows")


@contextmanager
def _written(out: Path | None, top: int) -> Iterator[Callable[[list[Prediction]], None] | None]:
    """Writes predictions to a CSV file, which takes its name when it is whole; None without one."""
    if out is None:
        yield None
        return
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder", "Give a file, such as predictions.csv")
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with beside.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            begun = False

            def write(predictions: list[Prediction]) -> None:
                nonlocal begun
                if predictions and not begun:
                    ranks = range(1, len(predictions[0].classes) + 1)
                    pairs = [name for n in ranks for name in (f"class{n}", f"probability{n}")]
                    table.writerow(["row", *pairs])
                    begun = True
                for one in predictions:
                    pairs = [
                        value
                        for name, share in zip(one.classes, one.probabilities, strict=True)
                        for value in (name, f"{share:.6g}")
                    ]
                    table.writerow([one.image, *pairs])

            yield write
            file.flush()
            os.fsync(file.fileno())
        beside.replace(out)
    except OSError as error:
        raise storage_error(error, out) from None
    finally:
        beside.unlink(missing_ok=True)


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
