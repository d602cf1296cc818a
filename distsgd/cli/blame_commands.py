"""``distsgd blame``: which training examples a prediction comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distsgd.cli.output import JsonFlag, count, percent, print_json, print_pairs, print_table, say
from distsgd.cli.settings import Run
from distsgd.errors import UsageError, storage_error

if TYPE_CHECKING:
    from distsgd.forensics.blame import Blame
    from distsgd.forensics.example_history import ExampleHistory

__all__ = ["add_to", "explain_file"]

_Top = Annotated[int, typer.Option(min=1, max=1000, help="How many examples on either side.")]
_Method = Annotated[
    str,
    typer.Option(
        help="tracin: what each step did at the moment; unrolled: through all later steps, which "
        "foretells a retraining (linear softmax)."
    ),
]
_Picture = Annotated[Path | None, typer.Option(help="Write the images as a picture, a .png.")]


def blame(
    run: Run,
    test: Annotated[
        int | None, typer.Option(help="Explain the prediction of this test example, from 0.")
    ] = None,
    class_: Annotated[
        str | None, typer.Option("--class", help="Explain the test loss of this class.")
    ] = None,
    example: Annotated[
        int | None,
        typer.Option(help="Show all updates that this training example took part in, from 0."),
    ] = None,
    wrong: Annotated[
        bool, typer.Option("--wrong", help="List wrong test examples, the surest first.")
    ] = False,
    at: Annotated[
        str, typer.Option(help="The update whose W predicts: a number, last, or epoch:N.")
    ] = "last",
    method: _Method = "tracin",
    top: _Top = 10,
    out: _Picture = None,
    json: JsonFlag = False,
) -> None:
    """Find the training examples that a prediction comes from, over all updates of the journal.

    The influence of a training example is by how much its own part of the steps lowered a loss.

    Example: distsgd blame latest --wrong

    Example: distsgd blame latest --test 17 --out why.png

    Example: distsgd blame latest --example 3
    """
    from distsgd.cli.run_kernel import multiply_as

    multiply_as(run)
    asked = [
        flag
        for flag, given in (
            ("--wrong", wrong), ("--class", class_ is not None), ("--example", example is not None),
            ("--test", test is not None and example is None),
        )
        if given
    ]  # fmt: skip
    if len(asked) != 1:
        raise UsageError(
            f"{asked[0]} does not go with {asked[1]}" if asked else "there is nothing to explain",
            "Give one of --test N, --class NAME, --example N, and --wrong, which lists what "
            "could be asked for",
        )
    _check_picture(out)
    if out is not None and asked[0] in ("--wrong", "--example"):
        raise UsageError(f"--out does not go with {asked[0]}", "Give --test N or --class NAME")
    if wrong:
        _show_wrong(run, at, top, json=json)
    elif example is not None:
        from distsgd.forensics.example_history import example_history

        _show_history(example_history(run, example, test=test, at=at), json=json)
    else:
        from distsgd.forensics.blame import blame as compute

        found = compute(run, test=test, of_class=class_, method=method, at=at, top=top)
        _show_blame(found, out, json=json)


def _check_picture(out: Path | None) -> None:
    """Check that a picture can have this name, before anything is computed.

    Raises:
        UsageError: it ends otherwise.
    """
    if out is not None and out.suffix.lower() != ".png":
        raise UsageError(f"--out cannot be {out}", "Give a file that ends in .png")


def _show_blame(found: Blame, out: Path | None, *, json: bool) -> None:
    """What was found, as tables or JSON; and as a picture.

    Raises:
        UsageError: there is to be a picture, and the examples are no images.
        StorageError: it cannot be written.
    """
    from distsgd.data.atomic import replace_file

    if out is not None:
        try:
            replace_file(out, found.picture(), shared=True)
        except OSError as error:
            raise storage_error(error, out, "Choose another file with --out") from None
    if json:
        print_json({**found.to_json(), **({} if out is None else {"out": str(out)})})
        return
    whole = found.target.startswith("class ")
    share = "most are found to be" if whole else "predicted"
    print_pairs([
        ("of", f"{found.target}: loss {found.loss:.4f}"),
        ("class", found.label),
        (share, f"{found.predicted} {percent(found.probability)}"),
        ("run", f"{found.run_dir}, after update {count(found.at)}"),
        ("method", f"{found.method}, over {count(found.updates)} updates"),
        *((("ignored", ", ".join(found.ignored)),) if found.ignored else ()),
    ])  # fmt: skip
    for title, causes in (("helpful: they lowered this loss most", found.helpful),
                          ("harmful: they raised it most", found.harmful)):  # fmt: skip
        print_table(
            ("class", "example", "influence", "updates"),
            [(one.label, str(one.example), f"{one.influence:+.5f}", str(one.updates))
             for one in causes],
            title,
        )  # fmt: skip
    classes = sorted(found.classes.items(), key=lambda item: -item[1])
    print_table(("class", "influence of all its examples"),
                [(name, f"{value:+.5f}") for name, value in classes])  # fmt: skip
    if out is not None:
        say(f"the images are in {out}")
    if found.harmful:
        rows = ",".join(str(one.example) for one in found.harmful)
        say(f"to train without the harmful ones: --set without={rows}")


def explain_file(
    run: str,
    files: Sequence[Path],
    label: str | None,
    out: Path | None,
    *,
    best: bool,
    at: str | None,
    json: bool,
) -> None:
    """What the prediction of a file with one row comes from: `distsgd predict --why`.

    Raises:
        UsageError: it is not one row, or has no such class.
    """
    from distsgd.cli.run_kernel import multiply_as

    multiply_as(run)
    _check_picture(out)
    from distsgd.data.importing.given_rows import GivenRows
    from distsgd.forensics.blame import blame_row
    from distsgd.runs.chosen import BEST, LAST
    from distsgd.runs.opened_run import open_run
    from distsgd.training.past import Past

    if best and at is not None:
        raise UsageError("--best does not go with --at", "Give one of them")
    opened = open_run(run)
    past = Past(opened.folder)
    model = past.after(at)[0] if at is not None else past.model(BEST if best else LAST)
    batches = GivenRows(model.shape, model.columns, strict=True).batches(list(files))
    rows = [(row, where) for batch in batches for row, where in zip(
        batch.rows, batch.where, strict=True)]  # fmt: skip
    if len(rows) != 1:
        raise UsageError(
            f"--why explains one image or row, and there are {len(rows)}", "Give a file with one"
        )
    row, name = rows[0]
    found = blame_row(opened, row, name, label=label, at=model.version)
    _show_blame(found, out, json=json)


def _show_wrong(run: str, at: str, top: int, *, json: bool) -> None:
    from distsgd.forensics.blame import surest_wrong

    found = surest_wrong(run, at, top)
    if json:
        print_json({"wrong": [vars(one) for one in found]})
        return
    print_table(
        ("class", "test example", "predicted", "sure"),
        [(one.label, str(one.test), one.predicted, percent(one.probability)) for one in found],
    )
    if found:
        say(f"to explain the first: distsgd blame {run} --test {found[0].test}")


def _show_history(found: ExampleHistory, *, json: bool) -> None:
    if json:
        print_json(found.to_json())
        return
    tested = "the test set" if found.test is None else f"test example {found.test}"
    print_pairs([
        ("example", f"{found.example}, {found.label}"),
        ("run", found.run_dir),
        ("took part in", f"{count(len(found.parts))} of {count(found.updates)} updates"
         + (": it is held out for validation" if found.held_out else "")),
        *((("factor", f"{found.factor:g}"),) if found.factor != 1 else ()),
    ])  # fmt: skip
    if not found.parts:
        return
    totals = found.totals
    linear = found.parts[0].own is not None
    rows = [
        (str(one.update), str(one.epoch), str(one.slot), str(one.worker),
         f"{one.version}" + (f" (-{one.staleness})" if one.staleness else ""),
         f"{one.loss_before:.4f}", f"{one.loss_after - one.loss_before:+.4f}",
         f"{one.expected:+.4f}", _or_none(one.own),
         f"{one.minibatch_after - one.minibatch_before:+.4f}",
         f"{one.test_after - one.test_before:+.4f}", _or_none(one.test_own))
        for one in found.parts
    ]  # fmt: skip
    rows.append((
        "all", "", "", "", "", "", f"{totals['change']:+.4f}", f"{totals['expected']:+.4f}",
        _or_none(totals["own"] if linear else None), f"{totals['minibatch_change']:+.4f}",
        f"{totals['test_change']:+.4f}", _or_none(totals["test_own"] if linear else None),
    ))  # fmt: skip
    print_table(
        ("update", "epoch", "slot", "worker", "read", "its loss", "change", "expected", "own part",
         "minibatch", "test", "own part on test"),
        rows,
        f"what each step did to the loss on the example, on its minibatch, and on {tested}",
        optional=("worker", "slot", "minibatch"),
    )  # fmt: skip


def _or_none(value: float | None) -> str:
    return "-" if value is None else f"{value:+.5f}"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(blame)
