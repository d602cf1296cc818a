"""A file of JSON objects, one a line, that grows while a run goes on."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from distsgd.errors import storage_error

__all__ = ["LineFile"]


class LineFile:
    """Appends lines; what goes wrong names the file.

    Args:
        path: made if it is not there, readable by the user alone.

    Raises:
        StorageError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.touch(mode=0o600)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise storage_error(error, path) from None

    def write(self, content: dict[str, Any]) -> None:
        """Append one object; it may stay in memory until `flush`.

        Raises:
            StorageError: the disk is full.
        """
        try:
            self._file.write(json.dumps(content) + "\n")
        except OSError as error:
            raise storage_error(error, self._path) from None

    def flush(self) -> None:
        """Hand what has been written to the system.

        Raises:
            StorageError: the disk is full.
        """
        try:
            self._file.flush()
        except OSError as error:
            raise storage_error(error, self._path) from None

    def sync(self) -> None:
        """Hand what has been written to the disk.

        Raises:
            StorageError: the disk is full.
        """
        self.flush()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise storage_error(error, self._path) from None

    def close(self) -> None:
        """Close the file; what a full disk refuses has been reported before."""
        with suppress(OSError):
            self._file.close()
