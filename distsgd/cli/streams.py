"""The standard streams of the command line: missing ones, their encoding, closed readers."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from distsgd.cli.log_lines import noticed
from distsgd.errors import StorageError

__all__ = [
    "GuardedStream", "ReaderGone", "check_stdout", "open_missing_streams", "outliving_stdout",
    "prepare_streams",
]  # fmt: skip

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))

_GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET)


def open_missing_streams() -> None:
    """Open /dev/null in place of each standard stream that is missing.

    Call it before any file is opened: the next file would take the number of the stream, and
    output of a library would end up in a journal. Python has None for such a stream, and prints
    for stderr would go to stdout.
    """
    for number in range(len(_STREAMS)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)  # by processes that are started from here
    for name, mode in _STREAMS:
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8", errors="replace"))  # noqa: SIM115


class ReaderGone(Exception):
    """The reader of stdout has closed it: a closed pipe, or a lost terminal.

    Not an OSError, which libraries in between would take for one of their own.
    """


class GuardedStream:
    """A standard stream whose write errors end the command, or only the output.

    After an error the file descriptor points to /dev/null, so that nothing fails twice, not even
    when the interpreter ends.

    Args:
        stream: the stream; everything but `write` and `flush` is its own.
        on_error: called with the error of the first write that fails.
    """

    def __init__(self, stream: TextIO, on_error: Callable[[OSError], None]) -> None:
        self._stream = stream
        self._on_error = on_error

    def write(self, text: str) -> int:
        """Write text; a line is flushed by whatever wrote it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Hand on what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        self._on_error(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_activity: str | None = None
"""What continues if stdout is closed, such as "training"; None: the command ends."""

_lost: StorageError | None = None
"""Why output was lost by a command that continued."""


@contextmanager
def outliving_stdout(activity: str) -> Iterator[None]:
    """While entered, the loss of stdout does not end the command, which continues without output.

    A training that is followed through a pipe is worth more than its lines: it ends as usual, with
    the usual exit code. A full disk under stdout still makes the exit code 1.

    Args:
        activity: what continues, for the notice on stderr.
    """
    global _activity
    _activity = activity
    try:
        yield
    finally:
        _activity = None


def check_stdout() -> None:
    """Flush stdout.

    Raises:
        ReaderGone: the reader has closed it.
        StorageError: something that was written earlier is lost, as on a full disk.
    """
    sys.stdout.flush()
    if _lost is not None:
        raise _lost


def _stdout_failed(error: OSError) -> None:
    global _lost
    gone = error.errno in _GONE
    why = "its reader has closed it" if gone else (error.strerror or str(error)).lower()
    lost = StorageError(f"cannot write to stdout: {why}", "Send the output somewhere else")
    if _activity is None:
        raise ReaderGone if gone else lost
    if not gone:
        _lost = lost
    text = f"cannot write to stdout: {why}; {_activity} continues without it"
    print(noticed(text, "warning"), file=sys.stderr)


def prepare_streams() -> None:
    """Make both output streams show any text, and survive the loss of their reader.

    What an encoding lacks is written as an escape, such as ``\\u65e5`` on an ASCII terminal.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not sys.stdout.isatty():
        # Typer takes FORCE_COLOR, and GITHUB_ACTIONS, to mean that a file is a terminal.
        os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"
    # Without stderr there is nowhere to report its own loss.
    sys.stderr = cast(TextIO, GuardedStream(sys.stderr, lambda error: None))
    sys.stdout = cast(TextIO, GuardedStream(sys.stdout, _stdout_failed))
