"""``distsgd report``: runs as one file for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distsgd.cli.output import JsonFlag, count, print_json, show

__all__ = ["add_to"]


def report(
    runs: Annotated[list[str], typer.Argument(help="Paths or names of runs, or latest.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write. (default: the name of the run, in this folder)"),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write runs into one HTML file that needs no network: the page of `distsgd watch`, frozen.

    Several runs are compared: those that differ in the seed alone are a mean and a band.

    Example: distsgd report latest --out report.html
    """
    from distsgd.data.atomic import replace_file
    from distsgd.errors import storage_error
    from distsgd.runs.folder import find_run
    from distsgd.watch.report import frozen_page

    found = list(dict.fromkeys(find_run(run).path for run in runs))
    name = found[0].name if len(found) == 1 else f"{len(found)}-runs"
    path = out or Path(f"{name}.html")
    content = frozen_page(found).encode("utf-8", "replace")
    try:
        replace_file(path, content, shared=True)
    except OSError as error:
        raise storage_error(error, path, "Choose another file with --out") from None
    if json:
        print_json({"path": str(path), "bytes": len(content), "runs": [str(run) for run in found]})
    else:
        show(f"{path} ({count(len(content) / 1000)} KB)")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)
