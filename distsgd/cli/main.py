"""The commands, and what becomes of errors."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from typing import Annotated

import typer

from distsgd.cli import (
    bench_command,
    cluster_commands,
    data_commands,
    job_commands,
    journal_commands,
    landscape_command,
    lecture_command,
    model_commands,
    runs_commands,
    search_commands,
    simulate_commands,
    study_commands,
    train_command,
)
from distsgd.errors import DistsgdError, storage_error
from distsgd.version import __version__

__all__ = ["app", "main"]

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
        typer.echo(f"distsgd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors (anywhere on the line).")
    ] = False,
) -> None:
    """Global options. --debug is taken off the line by `main`."""
    from distsgd.runtime.ray_session import sweep_dead_sessions

    sweep_dead_sessions()


train_command.add_to(app)
model_commands.add_to(app)
journal_commands.add_to(app)
simulate_commands.add_to(app)
bench_command.add_to(app)
app.add_typer(data_commands.app, name="data")
app.add_typer(runs_commands.app, name="runs")
app.add_typer(cluster_commands.app, name="cluster")
job_commands.add_to(app)
search_commands.add_to(app)
landscape_command.add_to(app)
lecture_command.add_to(app)
app.add_typer(study_commands.app, name="study")


_OPEN_FILES = 4096


def _raise_limit_of_open_files() -> None:
    """As far as the system lets us: the usual 256 or 1024 are few for workers, shards and Ray."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def main() -> None:
    """Run the command line; errors become one line on stderr and an exit code."""
    _raise_limit_of_open_files()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(args=arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        sys.exit(_report(error))


def _report(error: Exception) -> int:
    if isinstance(error, OSError) and not isinstance(error, DistsgdError):
        error = storage_error(error, error.filename or "a file")
    if isinstance(error, DistsgdError):
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    first = (str(error).splitlines() or [""])[0]
    print(
        f"error: this is a fault of distsgd: {type(error).__name__}: {first}. "
        "Run it again with --debug and report what it shows.",
        file=sys.stderr,
    )
    return 1
