"""Runs the command line: errors become one line on stderr and an exit code."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distsgd.cli import log_lines
from distsgd.cli.app import app
from distsgd.cli.output import log, say
from distsgd.cli.settings import CommandLine
from distsgd.cli.slips import meant
from distsgd.cli.streams import ReaderGone, check_stdout
from distsgd.errors import (
    DistsgdError,
    missing_package,
    resource_error,
    system_error,
    unreadable_module,
)
from distsgd.spelling import written

__all__ = ["main"]

_OPEN_FILES = 4096


def _raise_limit_of_open_files() -> None:
    """The usual 256 or 1024 are too few for workers, shards and Ray."""
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
    # From Pillow: images that it finds too large are refused, or decoded at reduced size.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    warnings.showwarning = lambda message, *_: say(f"warning: {message}", level="warning")
    _raise_limit_of_open_files()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    log_lines.choose("text")
    try:
        arguments, log_format = log_lines.format_among(arguments)
        log_lines.choose(log_format)
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
        sys.exit(_report(error, arguments))
    sys.exit(code if isinstance(code, int) else 0)


class _Notices(logging.Handler):
    """Shows log messages of the package, such as a shard that is fetched again, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one message."""
        say(record.getMessage(), level=record.levelname.lower())


def _is_about_usage(error: Exception) -> bool:
    """Whether typer could not parse the command line; its error classes are not public."""
    return hasattr(error, "format_message")


def _without_folder(error: DistsgdError) -> str:
    """An addition to an error if the working folder has been deleted."""
    try:
        Path.cwd()
    except FileNotFoundError:
        said = "working folder has been deleted" in error.problem
        return "" if said else " The working folder has been deleted: change to one that exists."
    return ""


def _report(error: Exception, words: Sequence[str]) -> int:
    """Print one line about an error of a command line; returns the exit code."""
    if _is_about_usage(error):
        return _report_usage(error, words)
    error = resource_error(error) or unreadable_module(error) or error
    if isinstance(error, ImportError):
        error = missing_package(error) or error
    if isinstance(error, UnicodeEncodeError):
        error = _unknown_to_locale(error)
    if isinstance(error, OSError) and not isinstance(error, DistsgdError):
        error = system_error(error)
        error.hint = error.hint.replace("The traceback shows", "Run it again with --debug to see")
    if isinstance(error, DistsgdError):
        more = _without_folder(error)
        return _say_error(f"{error}{more}", type(error).__name__, error.exit_code)
    first = (str(error).splitlines() or [""])[0]
    return _say_error(
        f"this is a bug in distsgd: {type(error).__name__}: {first}. "
        "Run it again with --debug and report the traceback.",
        type(error).__name__,
        1,
    )


def _say_error(text: str, kind: str, code: int) -> int:
    """Print one line about an error; returns the exit code."""
    if log_lines.as_json():
        log("error", "error", message=text, kind=kind, exit_code=code)
    else:
        say(f"error: {text}")
    return code


def _report_usage(error: Any, words: Sequence[str]) -> int:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    if message:  # without one, the help was shown instead
        end = "" if message.endswith((".", "?")) else "."
        if hint := meant(error, words):
            end += f" {hint}"
        see = f" See `{context.command_path} --help`." if context else ""
        _say_error(f"{message}{end}{see}", "UsageError", int(error.exit_code))
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
