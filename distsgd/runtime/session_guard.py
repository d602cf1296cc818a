"""Ends what is left of a Ray session when its owner is killed.

Most processes of a local Ray die with the process that started them; its agents stay for about
a minute. The guard is a process of its own that waits for the owner's end of a pipe to close.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distsgd.data.system import pause, python_module

__all__ = ["LOCK", "NODE_MARK", "clear_session", "guarded", "processes_of", "session_mark"]

LOCK = "owner.lock"
"""In the folder of a session; its owner holds it, or the one that clears up after a dead owner."""

NODE_MARK = "DISTSGD_NODE"
"""In the environment of what `cluster start` starts, and of its children: their folder."""

_SESSION_MARK = "DISTSGD_SESSION"
"""In the environment of what Ray starts for a session, and of its children: their folder."""

_DRIVER_LOG = "/python-core-driver-"
"""In the path of what Ray writes for a driver, and leaves open in it after `ray.shutdown`."""

_SECONDS_TO_DIE = 10.0
_POLL_SECONDS = 0.02


def session_mark(folder: Path) -> dict[str, str]:
    """Variables for the processes of a session, by which they are known as ours."""
    # Ray's processes rename themselves, by default over what was their environment.
    return {_SESSION_MARK: str(folder), "SPT_NOENV": "1"}


def processes_of(folder: str) -> list[int]:
    """Processes, other than this one, that carry the mark of a node or of a session.

    Those of a session also have to name its folder, or to have a file of it open: what another
    thread of the owner starts while Ray starts carries the mark as well, and is not ours. No
    process is ours for what it names or has open alone: a notebook that has trained, an editor.

    Args:
        folder: of the node or session.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(entry.name) != os.getpid() and _belongs(entry, folder):
                found.append(int(entry.name))
    return found


def _belongs(process: Path, folder: str) -> bool:
    environment = (process / "environ").read_bytes().split(b"\0")
    if os.fsencode(f"{NODE_MARK}={folder}") in environment:
        return True
    return os.fsencode(f"{_SESSION_MARK}={folder}") in environment and (
        os.fsencode(folder) in (process / "cmdline").read_bytes() or _has_open(process, folder)
    )


def _has_open(process: Path, folder: str) -> bool:
    ours = [file for file in _open_files(process) if folder in file]
    return bool(ours) and not any(_DRIVER_LOG in file for file in ours)


def _open_files(process: Path) -> list[str]:
    found = []
    for link in (process / "fd").iterdir():
        with suppress(OSError):  # it is closed by now; the others count all the same
            found.append(str(link.readlink()))
    return found


def clear_session(folder: Path, seconds: float = 0.0) -> None:
    """End the processes of a session, after so many seconds by force; remove its folder.

    The folder of processes that cannot be ended stays, for a later command.
    """
    until = time.monotonic() + seconds
    while pids := processes_of(str(folder)):
        now = time.monotonic()
        if now > until + _SECONDS_TO_DIE:
            return
        for pid in pids:
            if now > until:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        pause(_POLL_SECONDS)
    _remove(folder)


def _remove(folder: Path) -> None:
    """The lock goes last: a folder with something in it has one, or nobody knows if it is used."""
    with suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK:
                entry.unlink(missing_ok=True)
        if [entry.name for entry in folder.iterdir()] in ([], [LOCK]):
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """While entered, a guard stands by; it is stood down on leaving."""
    guard = subprocess.Popen(
        python_module("distsgd.runtime.session_guard", str(folder)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert guard.stdin is not None
    try:
        yield
    finally:
        with suppress(OSError):
            guard.stdin.write(b"x")
            guard.stdin.close()
        guard.wait()


def _stand_guard(folder: Path) -> None:
    """Wait for a byte, which stands us down, or for the end of the pipe, which is a death."""
    if not sys.stdin.buffer.read(1):
        clear_session(folder)


if __name__ == "__main__":
    _stand_guard(Path(sys.argv[1]))
