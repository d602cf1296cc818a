"""A file of JSON objects, one a line, that grows during a run."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from distsgd.data.folder_files import open_inside
from distsgd.errors import StorageError, storage_error

__all__ = ["LineFile"]

_MOST_LINES = 1000
_BLOCK = 1 << 16


class LineFile:
    """Appends lines to a file; errors name the file.

    Lines that a full disk refuses stay in memory until there is room again: the file always ends
    with a whole line.

    Args:
        path: created if missing, readable by the user alone. An incomplete last line, from a
            process that was killed while it wrote, is removed.

    Raises:
        StorageError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: list[str] = []
        self._file, self._size = self._opened()

    def _opened(self) -> tuple[int, int]:
        """The file, and how many bytes of whole lines it has."""
        try:
            file = open_inside(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            size = end = os.fstat(file).st_size
            while end > 0 and os.pread(file, 1, end - 1) != b"\n":
                low = max(0, end - _BLOCK)
                end = low + os.pread(file, end - low, low).rfind(b"\n") + 1
            if end < size:
                os.ftruncate(file, end)
        except OSError as error:
            raise storage_error(error, self.path) from None
        return file, end

    def reopen(self) -> None:
        """Continue with the file that has replaced this one.

        Raises:
            StorageError: it cannot be opened; the old one stays in use.
        """
        old = self._file
        self._file, self._size = self._opened()
        os.close(old)

    def write(self, content: dict[str, Any]) -> None:
        """Append one object; it may stay in memory until `flush`.

        Raises:
            StorageError: the disk is full; the object is kept.
        """
        self._pending.append(json.dumps(content) + "\n")
        if len(self._pending) % _MOST_LINES == 0:
            self.flush()

    def flush(self) -> None:
        """Hand what has been written to the system.

        Raises:
            StorageError: the disk is full; what has been written is kept.
        """
        content = "".join(self._pending).encode()
        try:
            sent = 0
            while sent < len(content):
                sent += os.write(self._file, content[sent:])
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise storage_error(error, self.path) from None
        self._size += len(content)
        self._pending.clear()

    def sync(self) -> None:
        """Hand what has been written to the disk.

        Raises:
            StorageError: the disk is full.
        """
        self.flush()
        try:
            os.fsync(self._file)
        except OSError as error:
            raise storage_error(error, self.path) from None

    def is_lost(self) -> bool:
        """Whether the file has been deleted, moved, or replaced by another since it was opened."""
        try:
            return not os.path.samestat(self.path.lstat(), os.fstat(self._file))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # a file system that does not answer now
            return False

    def close(self) -> None:
        """Close the file; a full disk was reported before."""
        with suppress(StorageError):
            self.flush()
        with suppress(OSError):
            os.close(self._file)
