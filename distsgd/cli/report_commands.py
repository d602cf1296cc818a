"""``distsgd report``: runs as one file for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distsgd.cli.output import JsonFlag, count, print_json, show

if TYPE_CHECKING:
    from distsgd.runs.folder import RunFolder

__all__ = ["add_to"]

_HTML = "html"


def report(
    runs: Annotated[list[str], typer.Argument(help="Paths or names of runs, or latest.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write. (default: the name of the run, in this folder)"),
    ] = None,
    figure: Annotated[
        str | None,
        typer.Option(
            help="One figure in place of the page: loss, accuracy, templates, confusion, classes, "
            "timeline, staleness, workers, learning-rate, throughput or bytes.",
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="html for the page; png, svg or pdf for a figure. (default: by --out)"
        ),
    ] = None,
    size: Annotated[
        str, typer.Option(help="Of a figure: page, slide (16:9), or column (of a paper).")
    ] = "page",
    dark: Annotated[bool, typer.Option("--dark", help="A figure that is light on dark.")] = False,
    x: Annotated[
        str, typer.Option("--x", help="Axis of a figure's curves: epoch, update or seconds.")
    ] = "epoch",
    checkpoint: Annotated[
        str,
        typer.Option(help="Of the templates: last, best, or any update: a number, epoch:N."),
    ] = "last",
    json: JsonFlag = False,
) -> None:
    """Write runs into one HTML file that needs no network: the page of `distsgd watch`, frozen.

    Several runs are compared: those that differ in the seed alone are a mean and a band. With
    --figure it is one figure of them, as a picture for a slide or a paper.

    Example: distsgd report latest --out report.html

    Example: distsgd report latest --figure templates --format pdf --size column
    """
    from distsgd.cli.run_kernel import multiply_as

    if checkpoint not in ("last", "best"):
        multiply_as(runs[0])
    from distsgd.data.atomic import replace_file
    from distsgd.errors import storage_error
    from distsgd.runs.folder import find_run

    found = list({run.path: run for run in map(find_run, runs)}.values())
    form = _format(format_, out, figure)
    _check("size", size, "page, slide or column", ("page", "slide", "column"))
    _check("x", x, "epoch, update or seconds", ("epoch", "update", "seconds"))
    name = found[0].path.name if len(found) == 1 else f"{len(found)}-runs"
    path = out or Path(f"{name}-{figure}.{form}" if figure else f"{name}.html")
    if figure is None:
        from distsgd.watch.report import frozen_page

        content = frozen_page([run.path for run in found]).encode("utf-8", "replace")
    else:
        content = _drawn(found, figure, form, size, x, checkpoint, dark=dark)
    try:
        replace_file(path, content, shared=True)
    except OSError as error:
        raise storage_error(error, path, "Choose another file with --out") from None
    if json:
        paths = [str(run.path) for run in found]
        print_json({"path": str(path), "bytes": len(content), "runs": paths})
    else:
        show(f"{path} ({count(len(content) / 1000)} KB)")


def _drawn(
    runs: list[RunFolder], name: str, form: str, size: str, x: str, checkpoint: str, *, dark: bool,
) -> bytes:  # fmt: skip
    """A figure as the content of a file."""
    from distsgd.figures.drawn import rendered
    from distsgd.figures.of_runs import FIGURES, build
    from distsgd.runs.history import HistoryReader
    from distsgd.training.past import model_after

    _check("figure", name, ", ".join(FIGURES), tuple(FIGURES))
    model = None
    if checkpoint != "last" and name == "templates":
        model = model_after(runs[0], checkpoint)
    figure = build(name, [HistoryReader(run).look() for run in runs], x, model)
    return rendered(figure, form, size, dark)


def _format(given: str | None, out: Path | None, figure: str | None) -> str:
    """The format of the file: as given, or as its name says, or what is usual.

    Raises:
        UsageError: there is no such format, or it is not one of what is asked for.
    """
    from distsgd.errors import UsageError

    pictures = ("png", "svg", "pdf")
    ending = "" if out is None else out.suffix.lower().removeprefix(".")
    form = given or (ending if ending in (*pictures, _HTML) else "")
    form = form or (_HTML if figure is None else "png")
    _check("format", form, "html, png, svg or pdf", (_HTML, *pictures))
    if figure is None and form != _HTML:
        raise UsageError(
            f"a {form} file shows one figure of a run",
            "Name it, such as --figure loss; the whole page is html",
        )
    if figure is not None and form == _HTML:
        raise UsageError("a single figure is no html file", "Give --format png, svg or pdf")
    return form


def _check(flag: str, value: str, named: str, values: tuple[str, ...]) -> None:
    from distsgd.errors import UsageError

    if value not in values:
        raise UsageError(f"--{flag} cannot be {value}", f"Give {named}")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)
