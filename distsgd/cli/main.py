"""The commands, and what becomes of errors."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from distsgd.cli import (
    bench_commands,
    cluster_commands,
    data_commands,
    docs_commands,
    job_commands,
    lecture_commands,
    model_commands,
    proof_commands,
    runs_commands,
    simulate_commands,
    study_commands,
    train_commands,
)
from distsgd.cli.output import say, show
from distsgd.cli.settings import CommandLine
from distsgd.cli.streams import ReaderGone, check_stdout
from distsgd.errors import (
    DistsgdError,
    missing_package,
    resource_error,
    system_error,
    unreadable_module,
)
from distsgd.spelling import written
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
        show(f"distsgd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors (anywhere on the line).")
    ] = False,
) -> None:
    """Global options. --debug is taken off the line by `main`."""
    if isinstance(context.obj, CommandLine):
        context.obj.root = context.command


train_commands.add_to(app)
model_commands.add_to(app)
proof_commands.add_to(app)
simulate_commands.add_to(app)
bench_commands.add_to(app)
app.add_typer(data_commands.app, name="data")
app.add_typer(runs_commands.app, name="runs")
app.add_typer(cluster_commands.app, name="cluster")
job_commands.add_to(app)
lecture_commands.add_to(app)
app.add_typer(study_commands.app, name="study")
docs_commands.add_to(app)


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
    try:
        _run()
    except SystemExit as end:
        _leave_hanging_reads(end.code)
        raise


def _leave_hanging_reads(code: object) -> None:
    """Exit at once if a read of a store hangs: the interpreter would wait until it is answered."""
    stores = sys.modules.get("distsgd.data.remote.stores")
    if stores is not None and stores.reads_hang():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code if isinstance(code, int) else 0)


def _run() -> None:
    logging.getLogger("distsgd").addHandler(_Notices())
    # Of Pillow; what it takes for too large is refused, or decoded at a part of its size.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")
    _raise_limit_of_open_files()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        line = CommandLine(arguments)
        with written(line.spelling):
            code = app(args=arguments, obj=line, standalone_mode=False)
        check_stdout()
    except KeyboardInterrupt:
        sys.exit(130)
    except ReaderGone:
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if debug and not _is_about_usage(error):
            raise
        sys.exit(_report(error))
    sys.exit(code if isinstance(code, int) else 0)


class _Notices(logging.Handler):
    """What the package logs, such as that a shard is fetched again, as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one message."""
        say(record.getMessage())


def _is_about_usage(error: Exception) -> bool:
    """Whether typer has found fault with the command line; its classes are not public."""
    return hasattr(error, "format_message")


def _without_folder(error: DistsgdError) -> str:
    """What to add to an error of a command that stands in a folder that has been deleted."""
    try:
        Path.cwd()
    except FileNotFoundError:
        said = "working folder has been deleted" in error.problem
        return "" if said else " The working folder has been deleted: change to one that exists."
    return ""


def _report(error: Exception) -> int:
    """Say in one line what went wrong; the exit code."""
    if _is_about_usage(error):
        return _report_usage(error)
    error = resource_error(error) or unreadable_module(error) or error
    if isinstance(error, ImportError):
        error = missing_package(error) or error
    if isinstance(error, UnicodeEncodeError):
        error = _unknown_to_locale(error)
    if isinstance(error, OSError) and not isinstance(error, DistsgdError):
        error = system_error(error)
    if isinstance(error, DistsgdError):
        say(f"error: {error}{_without_folder(error)}")
        return error.exit_code
    first = (str(error).splitlines() or [""])[0]
    say(
        f"error: this is a fault of distsgd: {type(error).__name__}: {first}. "
        "Run it again with --debug and report what it shows."
    )
    return 1


def _report_usage(error: Any) -> int:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    if message:  # without one, the help was shown instead
        end = "" if message.endswith((".", "?")) else "."
        see = f" See `{context.command_path} --help`." if context else ""
        say(f"error: {message}{end}{see}")
    return int(error.exit_code)


def _unknown_to_locale(error: UnicodeEncodeError) -> DistsgdError:
    begin = max(0, error.start - 100)
    name = error.object[begin : error.start + 100]
    if error.encoding.startswith("utf"):
        return DistsgdError(f"the name {name} is not UTF-8", "Rename the file")
    return DistsgdError(
        f"{name} cannot be written in {error.encoding}, the encoding of this locale",
        "Set LC_ALL=C.UTF-8, or PYTHONUTF8=1",
    )
