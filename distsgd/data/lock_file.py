"""A lock that a process holds on a file, until it lets go of it or ends.

The file is opened as one of a folder that somebody else may have made (`folder_files`): a lock file
that is a link is refused, and the content of the file is left alone.

A lock that the user is told of, if somebody else has it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distsgd.data.folder_files import open_inside

__all__ = ["LockFile", "is_locked", "waiting_lock"]


class LockFile:
    """A lock file, made when it is first held, and never removed.

    Two of the same path exclude each other within a process, too.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, self._owner = -1, 0

    def acquire(self, *, wait: bool = True) -> bool:
        """Hold the lock; returns whether it is held.

        Args:
            wait: until another process lets go of it.

        Raises:
            OSError: the file cannot be opened or locked.
        """
        if self._file >= 0:
            return True
        file = open_inside(self.path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException as error:
            os.close(file)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._file, self._owner = file, os.getpid()
        return True

    def release(self) -> None:
        """Let go of the lock, if it is held; in a forked child, leave it to the parent."""
        file, self._file = self._file, -1
        if file < 0:
            return
        if self._owner == os.getpid():
            fcntl.flock(file, fcntl.LOCK_UN)  # a forked child may have it open, too
        os.close(file)

    def __del__(self) -> None:
        with suppress(Exception):
            self.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock; looks by a shared one, which keeps nobody else out."""
    try:
        file = open_inside(path)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


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
