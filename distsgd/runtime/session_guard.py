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

__all__ = ["clear_session", "guarded", "processes_of"]


def processes_of(folder: str) -> list[int]:
    """Processes, other than this one, that name the folder or have a file of it open.

    Ray's workers rename themselves, so that their command line alone does not tell.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(entry.name) != os.getpid() and (
                folder.encode() in (entry / "cmdline").read_bytes()
                or any(folder in str(link.readlink()) for link in (entry / "fd").iterdir())
            ):
                found.append(int(entry.name))
    return found


def clear_session(folder: Path, seconds: float = 0.0) -> None:
    """End the processes of a session, after so many seconds by force; remove its folder."""
    until = time.monotonic() + seconds
    while pids := [pid for pid in processes_of(str(folder)) if not _is_guard(pid)]:
        if time.monotonic() > until:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)


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
