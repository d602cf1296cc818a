"""What is asked of the system with odd surroundings in mind: our own processes, and pauses."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

__all__ = [
    "OWN_THREAD", "kill_if", "no_standard_descriptors", "pause", "python_module",
    "search_path", "wait_for_exit", "whole_environment",
]  # fmt: skip

OWN_THREAD = "distsgd"
"""How the names of our threads begin in the process of a caller."""

_POLL_SECONDS = 0.02
_STANDARD = 3

_RUN = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); module = sys.argv.pop(1); "
    "runpy.run_module(module, run_name='__main__', alter_sys=True)"
)
"""`python -m`, with a folder that is searched after all others."""


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours, or of a package, in a process of its own.

    Nothing is imported from the working folder: the user may have a `queue.py` or `numpy.py` there.
    Our own package is found wherever it was imported from.

    Args:
        module: its full name.
        *arguments: its command line.
    """
    ours = str(Path(__file__).resolve().parents[2])
    return [sys.executable, "-P", "-c", _RUN, ours, module, *arguments]


def search_path() -> dict[str, str]:
    """``PYTHONPATH`` for processes of ours, if this one has it.

    Without its empty elements, as in ``$PYTHONPATH:/more``: they stand for the working folder.
    """
    path = os.environ.get("PYTHONPATH")
    if path is None:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, path.split(os.pathsep)))}


def whole_environment(**more: str) -> dict[str, str]:
    """The environment for a process of ours, with more variables."""
    return {**os.environ, **search_path(), **more}


def kill_if(pid: int, is_meant: Callable[[], bool]) -> bool:
    """SIGKILL a process, if it is the one that is meant; returns whether it was.

    Numbers of processes are used again: the process is held while it is looked at.

    Args:
        pid: its number.
        is_meant: looks at the process that has the number.
    """
    try:
        held = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:  # the system has no such call
        held = -1
    try:
        if not is_meant():
            return False
        if held < 0:
            os.kill(pid, signal.SIGKILL)
        else:
            signal.pidfd_send_signal(held, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False
    finally:
        if held >= 0:
            os.close(held)


_lock = threading.Lock()
_fillers: list[int] = []
_users = 0


@contextmanager
def no_standard_descriptors() -> Iterator[None]:
    """While entered, no file that is opened gets descriptor 0, 1 or 2.

    Where one of these is closed, as in a daemon, it leads to /dev/null meanwhile, also in processes
    that are started: what a library prints would go into a journal.
    """
    global _users
    with _lock:
        _users += 1
        while (number := os.open(os.devnull, os.O_RDWR)) < _STANDARD:
            os.set_inheritable(number, True)
            _fillers.append(number)
        os.close(number)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            while _fillers and not _users:
                number = _fillers.pop()
                with suppress(OSError):
                    # Unless somebody has put something else in its place.
                    if os.path.samestat(os.fstat(number), Path(os.devnull).stat()):
                        os.close(number)


def pause(seconds: float) -> None:
    """Wait; at once if `seconds` is negative.

    `time.sleep` waits until a time of day of some clock, and fails (EINVAL) when that clock is set
    or faked meanwhile. The kernel counts this interval by itself.
    """
    select.select([], [], [], max(0.0, seconds))


def wait_for_exit(process: subprocess.Popen[Any], seconds: float) -> int | None:
    """The exit code of a child, None if it still runs when the time is up.

    `Popen.wait` with a limit sleeps by a clock; see `pause`.
    """
    until = monotonic() + seconds
    while (code := process.poll()) is None and monotonic() < until:
        pause(_POLL_SECONDS)
    return code
