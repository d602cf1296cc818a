"""Processes, descriptors and pauses that work in unusual environments."""

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
"""Prefix of the names of our threads."""

_POLL_SECONDS = 0.02
_STANDARD = 3

_RUN = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); module = sys.argv.pop(1); "
    "runpy.run_module(module, run_name='__main__', alter_sys=True)"
)
"""`python -m`, with a folder that is searched last."""


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in a process of its own.

    Nothing is imported from the working folder, where the user may have a `queue.py` or `numpy.py`.
    Our own package is found wherever it was imported from.

    Args:
        module: full name of the module.
        *arguments: its command line.
    """
    ours = str(Path(__file__).resolve().parents[2])
    return [sys.executable, "-P", "-c", _RUN, ours, module, *arguments]


def search_path() -> dict[str, str]:
    """``PYTHONPATH`` for our processes, if this one has it.

    Empty elements, as in ``$PYTHONPATH:/more``, are left out: they mean the working folder.
    """
    path = os.environ.get("PYTHONPATH")
    if path is None:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, path.split(os.pathsep)))}


def whole_environment(**more: str) -> dict[str, str]:
    """The environment for one of our processes, with more variables."""
    return {**os.environ, **search_path(), **more}


def kill_if(pid: int, is_meant: Callable[[], bool]) -> bool:
    """Send SIGKILL to a process, if it is the intended one; returns whether it was.

    The system reuses process ids, so the process is held by a descriptor while it is inspected.

    Args:
        pid: the process id.
        is_meant: inspects the process that has this id.
    """
    try:
        held = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:  # not supported by the system
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
    """Keep new files off descriptors 0, 1 and 2.

    If one of these is closed, as in a daemon, it leads to /dev/null meanwhile, also in child
    processes. Otherwise the output of a library could end up in a journal.
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
                    # Unless other code has put another file in its place.
                    if os.path.samestat(os.fstat(number), Path(os.devnull).stat()):
                        os.close(number)


def pause(seconds: float) -> None:
    """Sleep; return at once if ``seconds`` is negative.

    `time.sleep` waits for a time of a clock, and fails (EINVAL) if that clock is set or faked
    meanwhile. Here the kernel counts the interval itself.
    """
    select.select([], [], [], max(0.0, seconds))


def wait_for_exit(process: subprocess.Popen[Any], seconds: float) -> int | None:
    """Wait for a child process; returns its exit code, None if it is still running.

    `Popen.wait` with a time limit depends on a clock; see `pause`.
    """
    until = monotonic() + seconds
    while (code := process.poll()) is None and monotonic() < until:
        pause(_POLL_SECONDS)
    return code
