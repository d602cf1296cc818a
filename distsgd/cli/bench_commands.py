"""``distsgd bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distsgd.cli.output import JsonFlag, print_json, print_table, say

__all__ = ["add_to"]


def bench(
    dataset: Annotated[str, typer.Option(help="cifar10, sample, or a dataset folder.")] = "cifar10",
    rounds: Annotated[int | None, typer.Option(help="Measurements of each. (default: 3)")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds of steps in each round. (default: 2)")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Names or prefixes, comma-separated: numpy,inline,bsp-2-512."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One round of half a second.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Also write the report to this file, as Markdown.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Compare with a numpy loop, Ray's parameter server, PyTorch and scikit-learn.

    All are measured now, in turn, on the same data, with one thread a process; the ratios are the
    result. It takes several minutes on a machine that should be idle otherwise.

    Example: distsgd bench --only numpy,inline,bsp --rounds 5
    """
    from distsgd.bench.benchmark import Options, check_output, run_benchmark, write_markdown
    from distsgd.bench.report import tables

    if output is not None:
        check_output(output)
    options = Options(dataset=dataset, rounds=rounds, seconds=seconds, only=only, quick=quick)
    report = run_benchmark(options, say)
    if output is not None:
        write_markdown(output, report)
        say(f"wrote {output}")
    if json:
        print_json(report)
        return
    for table in tables(report):
        print_table(table.headings, table.rows, table.title)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)
