"""A lock that the user is told of, if somebody else has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distsgd.data.lock_file import LockFile

__all__ = ["waiting_lock"]


@contextmanager
def waiting_lock(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock; whoever has it is waited for."""
    lock = LockFile(path)
    if not lock.acquire(wait=False):
        say("another process is fetching; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
