"""Sessions of Ray that start at the same time on one machine wait for each other.

A Ray takes seconds of every core to start, and gives up after a minute: twenty at once on two cores
would all fail. As many start at a time as there are cores, those of one user; the others wait, and
say so.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

from distsgd.data.system import pause

__all__ = ["starting"]

_PATIENCE_SECONDS = 600.0
"""Seconds after which a session that is starting is taken to be stuck, and no longer waited for."""

_UNSAID_SECONDS = 1.0
_POLL_SECONDS = 0.1
_log = logging.getLogger("distsgd")


@contextmanager
def starting(folder: Path) -> Iterator[None]:
    """While entered, this session is one of the few that start; waits until it may be.

    Args:
        folder: where sessions lie. If no lock can be made there, nobody waits.
    """
    names = [f"distsgd-start-{os.getuid()}-{n}.lock" for n in range(len(os.sched_getaffinity(0)))]
    place = _turn([folder / name for name in names])
    try:
        yield
    finally:
        if place is not None:
            path, lock = place
            with suppress(OSError):
                path.unlink()
            os.close(lock)


def _turn(places: Sequence[Path]) -> tuple[Path, int] | None:
    """A place, with the lock on it; None if none can be had."""
    began, said = monotonic(), False
    while True:
        taken = False
        for path in places:
            if (lock := _own_file(path)) is None:
                continue
            if _locked(lock, path):
                return path, lock
            os.close(lock)
            taken = True
        waited = monotonic() - began
        if not taken or waited > _PATIENCE_SECONDS:
            return None
        if waited > _UNSAID_SECONDS and not said:
            said = True
            _log.warning("waiting for other trainings on this machine, which are starting as well")
        pause(_POLL_SECONDS)


def _own_file(path: Path) -> int | None:
    """A file of this user's own, opened."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(OSError):
        lock = os.open(path, flags, 0o600)
        found = os.fstat(lock)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid():
            return lock
        os.close(lock)
    return None


def _locked(lock: int, path: Path) -> bool:
    """Lock a file, unless another process has; not one that has been removed meanwhile."""
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(lock).st_ino == path.stat(follow_symlinks=False).st_ino
    return False
