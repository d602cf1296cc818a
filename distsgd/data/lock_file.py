"""A lock that a process holds on a file until it releases it or ends.

The file is opened as one of a folder that another user may have made (`folder_files`): a lock file
that is a link is refused, and the content of the file is left alone.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from distsgd.data.folder_files import open_inside

__all__ = ["LockFile", "is_locked"]


class LockFile:
    """A lock file, created when it is first held, and never removed.

    Two objects of the same path exclude each other, also within a process.

    Args:
        path: path of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, self._owner = -1, 0

    def acquire(self, *, wait: bool = True) -> bool:
        """Acquire the lock; returns whether it is held now.

        Args:
            wait: wait until another process releases it.

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
        """Release the lock, if it is held; a forked child leaves it to its parent."""
        file, self._file = self._file, -1
        if file < 0:
            return
        if self._owner == os.getpid():
            fcntl.flock(file, fcntl.LOCK_UN)  # a forked child may also have it open
        os.close(file)

    def __del__(self) -> None:
        with suppress(Exception):
            self.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock; tries a shared one, which keeps no other process out."""
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
