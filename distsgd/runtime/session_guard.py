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

__all__ = ["LOCK", "MARK", "clear_session", "guarded", "processes_of"]

LOCK = "owner.lock"
"""In the folder of a session; its owner holds it, and whoever clears up after a dead one."""

MARK = "DISTSGD_NODE"
"""In the environment of what `cluster start` starts, and of its children: their folder."""

_DRIVER_LOG = "/python-core-driver-"
"""In the path of what Ray writes for a driver, and leaves open in it after `ray.shutdown`."""

_PROGRAMS = ("python", "raylet", "gcs_server")
"""What Ray's processes are, of whatever version."""

_SECONDS_TO_DIE = 10.0


def processes_of(folder: str) -> list[int]:
    """Processes, other than this one, that name the folder, have a file of it open, or its mark.

    Ray's workers rename themselves, so that their command line alone does not tell. Drivers have
    files open, too, and for ever, but are their users': a notebook that has trained on the cluster
    outlives it. So does a pager or shell that somebody looks through the folder with.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(entry.name) != os.getpid() and _belongs(entry, folder):
                found.append(int(entry.name))
    return found


def _belongs(process: Path, folder: str) -> bool:
    if _marked(process, folder):
        return True
    program = (process / "exe").readlink().name
    names_it = folder.encode() in (process / "cmdline").read_bytes()
    return program.startswith(_PROGRAMS) and (names_it or _has_open(process, folder))


def _named(process: Path, folder: str) -> bool:
    return folder.encode() in (process / "cmdline").read_bytes() or _marked(process, folder)


def _has_open(process: Path, folder: str) -> bool:
    ours = [file for file in _open_files(process) if folder in file]
    return bool(ours) and not any(_DRIVER_LOG in file for file in ours)


def _marked(process: Path, folder: str) -> bool:
    return f"{MARK}={folder}".encode() in (process / "environ").read_bytes().split(b"\0")


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
    while pids := [pid for pid in processes_of(str(folder)) if not _is_guard(pid)]:
        now = time.monotonic()
        if now > until + _SECONDS_TO_DIE:
            return
        for pid in pids:
            if now > until and not _only_looks(pid, folder):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
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


def _only_looks(pid: int, folder: Path) -> bool:
    """Whether it is another command, which has the lock open to see if somebody holds it.

    A child of the owner that is not yet another program looks the same; it will not for long.
    """
    with suppress(OSError):
        process = Path(f"/proc/{pid}")
        ours = {file for file in _open_files(process) if str(folder) in file}
        return not _named(process, str(folder)) and ours <= {str(folder / LOCK)}
    return True


def _is_guard(pid: int) -> bool:
    with suppress(OSError):
        return b"distsgd.runtime.session_guard" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """While entered, a guard stands by; it is stood down on leaving."""
    guard = subprocess.Popen(
        [sys.executable, "-m", "distsgd.runtime.session_guard", str(folder)],
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
