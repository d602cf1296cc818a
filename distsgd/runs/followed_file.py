"""Reads the lines of a file that grows, each once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from distsgd.data.folder_files import open_inside
from distsgd.errors import RunError, machine_trouble

__all__ = ["FollowedFile"]

_PIECE = 1 << 20


class FollowedFile:
    """The whole lines of a file that have been added since they were last asked for.

    An incomplete last line is not read before its end is there. A file that has been replaced, or
    has become shorter, is read from its beginning.

    Args:
        path: the file; it may not exist yet.
        longest: bytes of the longest line; a longer one is skipped.

    Attributes:
        size: bytes of the file at the last look.
    """

    def __init__(self, path: Path, longest: int) -> None:
        self.path, self._longest = path, longest
        self.size = 0
        self._identity: tuple[int, int] | None = None
        self._read, self._rest = 0, b""
        self._skipping = False

    def look(self) -> tuple[bool, Iterator[list[bytes]]]:
        """What is new.

        Returns:
            whether it starts over with the first line, and the new lines without their ends, some
            at a time. They must be taken before the next call.

        Raises:
            RunError: the file cannot be read.
            StorageError: the machine cannot read it.
        """
        try:
            file = open_inside(self.path)
        except FileNotFoundError:
            over = self._identity is not None
            self._start(None)
            return over, iter(())
        except OSError as error:
            raise self._trouble(error) from None
        found = os.fstat(file)
        identity = (found.st_dev, found.st_ino)
        over = self._identity is not None and (
            identity != self._identity or found.st_size < self._read
        )
        if over or self._identity is None:
            self._start(identity)
        self.size = found.st_size
        return over, self._lines(file, found.st_size)

    def _start(self, identity: tuple[int, int] | None) -> None:
        self._identity, self.size, self._read = identity, 0, 0

    def _lines(self, file: int, end: int) -> Iterator[list[bytes]]:
        place, rest, skipping = self._read, b"", False
        try:
            while place < end:
                piece = os.pread(file, min(_PIECE, end - place), place)
                if not piece:
                    return
                place += len(piece)
                *lines, rest = (rest + piece).split(b"\n")
                if skipping and lines:
                    skipping = False
                    del lines[0]
                self._read = place - len(rest)  # what follows may be removed after a kill
                if len(rest) > self._longest:
                    skipping, rest = True, b""
                yield lines
        except OSError as error:
            raise self._trouble(error) from None
        finally:
            os.close(file)

    def _trouble(self, error: OSError) -> Exception:
        return machine_trouble(error, self.path) or RunError(
            f"{self.path} cannot be read: {error.strerror}", "Check the disk"
        )
