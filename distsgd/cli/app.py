"""The command line as one Typer application."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from distsgd.cli import (
    advise_commands,
    bench_commands,
    blame_commands,
    cluster_commands,
    completion_commands,
    data_commands,
    diff_commands,
    docs_commands,
    doctor_commands,
    fork_commands,
    job_commands,
    lecture_commands,
    model_commands,
    proof_commands,
    report_commands,
    runs_commands,
    serve_commands,
    show_commands,
    simulate_commands,
    study_commands,
    sweep_commands,
    train_commands,
    tune_commands,
    watch_commands,
)
from distsgd.cli.output import show
from distsgd.cli.settings import CommandLine
from distsgd.engine.core_type import VARIABLE, chosen
from distsgd.version import __version__

__all__ = ["app"]

app = typer.Typer(
    name="distsgd",
    help="Distributed minibatch SGD on Ray: exact, and the same bits for any number of workers.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        show(f"distsgd {__version__}")
        show(_kernel())
        raise typer.Exit


def _kernel() -> str:
    """The BLAS kernel that this command line multiplies by, and who chose it."""
    from distsgd.engine.blas import blas_kernel, core_type_of

    kernel = blas_kernel()
    if core_type_of(kernel) is None:
        return kernel
    if chosen() is not None:
        return f"{kernel}, for what this processor can do"
    given = os.environ.get(VARIABLE)
    return f"{kernel}, by {VARIABLE}={given}" if given else f"{kernel}, as OpenBLAS picks it"


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version and the BLAS kernel, and exit.",
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors; may stand anywhere.")
    ] = False,
    log_format: Annotated[
        str,
        typer.Option(
            "--log-format",
            metavar="text|json",
            help="Write what goes to stderr as text, or as JSON lines; may stand anywhere.",
        ),
    ] = "text",
) -> None:
    """Global options; `distsgd.cli.main` takes the last two out of the line before it is parsed."""
    if isinstance(context.obj, CommandLine):
        context.obj.root = context.command


train_commands.add_to(app)
fork_commands.add_to(app)
model_commands.add_to(app)
proof_commands.add_to(app)
diff_commands.add_to(app)
blame_commands.add_to(app)
watch_commands.add_to(app)
serve_commands.add_to(app)
report_commands.add_to(app)
show_commands.add_to(app)
simulate_commands.add_to(app)
tune_commands.add_to(app)
sweep_commands.add_to(app)
bench_commands.add_to(app)
advise_commands.add_to(app)
app.add_typer(data_commands.app, name="data")
app.add_typer(runs_commands.app, name="runs")
app.add_typer(cluster_commands.app, name="cluster")
job_commands.add_to(app)
lecture_commands.add_to(app)
app.add_typer(study_commands.app, name="study")
doctor_commands.add_to(app)
completion_commands.add_to(app)
docs_commands.add_to(app)
