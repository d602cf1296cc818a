"""One file of a store into a local one: tried again with back-off, and checked as it arrives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from distsgd.data.folder_files import open_inside
from distsgd.data.remote.pace import LEAST_BYTES, Pace, TooSlow
from distsgd.data.remote.stores import Piece, Refused, Store
from distsgd.data.system import pause
from distsgd.errors import CorruptDataError, SourceError, storage_error

__all__ = ["PAUSES", "Notice", "fetch_checked", "fetch_small"]

PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each further try, after as many that brought nothing new."""

_MOST_TRIES = 50
"""And as many more as there are smallest pieces."""
_MOST_BYTES = 64 << 20
_PIECE_BYTES = 16 << 20
_QUICK_SECONDS = 1.0
"""After a piece that came within this time the next may be four times as large. A try that brings
nothing new has it quartered, so that what a store gives that breaks off is kept all the same."""

Notice = Callable[[str], None]
"""Told of trouble that may pass, in words."""


def fetch_checked(
    store: Store,
    name: str,
    size: int,
    sha256: str,
    part: Path,
    whose: str,
    notice: Notice,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Fetch a file to ``part``; what has arrived is kept from one try to the next.

    Args:
        store: to read from.
        name: of the file there.
        size: that it should have.
        sha256: likewise.
        part: where to.
        whose: what the user calls the dataset.
        notice: told of tries that failed, and of a store that is slow.
        stopped: whether the file is not wanted any more; asked all the time.

    Raises:
        SourceError: it cannot be had, or is not wanted any more.
        CorruptDataError: all has arrived, twice, and is not what it should be.
        StorageError: it cannot be written.
    """
    for again in (False, True):
        found = _fetch_once(store, name, size, part, whose, notice, stopped)
        if found == sha256:
            return
        if not again:
            notice(f"{whose}/{name} has arrived with another SHA-256; fetching it once more")
    part.unlink()
    raise CorruptDataError(
        f"{whose}/{name} is not what the manifest says: SHA-256 {found[:16]}..., "
        f"not {sha256[:16]}...",
        "Put the shards of one dataset there, all of the same making",
    )


def _fetch_once(
    store: Store,
    name: str,
    size: int,
    part: Path,
    whose: str,
    notice: Notice,
    stopped: Callable[[], bool],
) -> str:
    """Write a file to ``part``; returns its SHA-256."""
    found = hashlib.sha256()
    try:
        with os.fdopen(open_inside(part, os.O_RDWR | os.O_CREAT), "r+b") as file:

            def write(piece: Piece) -> None:
                found.update(piece)
                try:
                    file.write(piece)
                except OSError as error:  # not the store's, so not to be tried again
                    raise storage_error(error, part) from None

            _follow(store, name, size, write, whose, notice, stopped)
            file.truncate()
    except OSError as error:
        raise storage_error(error, part) from None
    return found.hexdigest()


def fetch_small(store: Store, name: str, whose: str, notice: Notice) -> bytes:
    """The content of a file of unknown size.

    Raises:
        SourceError: it cannot be had, or is larger than a manifest ever is.
    """
    content = bytearray()

    def write(piece: Piece) -> None:
        content.extend(piece)
        if len(content) > _MOST_BYTES:
            raise SourceError(f"{whose}/{name} is too large", "Look at what lies there")

    _follow(store, name, None, write, whose, notice)
    return bytes(content)


def _follow(
    store: Store,
    name: str,
    size: int | None,
    write: Callable[[Piece], None],
    whose: str,
    notice: Notice,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Hand on the content piece by piece, however often it breaks off."""
    have = vain = tries = 0
    pieces, most_tries = _PieceSize(), _MOST_TRIES + (size or 0) // LEAST_BYTES

    def say_slow(news: str) -> None:
        notice(f"{whose}/{name} is slow: {news}")

    while True:
        tries, before, slow = tries + 1, have, False
        pace = Pace(say_slow if tries == 1 else lambda _: None)
        try:
            for piece in store.pieces(name, have, size, pieces.next):
                have += len(piece)
                if size is not None and have > size:
                    raise Refused(f"it is longer than the {size} bytes that the manifest says")
                if stopped():
                    raise Refused("it is not wanted any more")
                pieces.came(len(piece))
                write(piece)
                if size is None or have < size:
                    pace.count(len(piece))
            if size is None or have == size:
                return
            why = f"it ends after {have} of {size} bytes"
        except Refused as error:
            raise SourceError(f"{whose}/{name} cannot be read: {error}", _HINT) from None
        except OSError as error:
            slow = isinstance(error, TooSlow)
            why = str(error).partition("\n")[0].rstrip(".")
        vain = 0 if have > before and not slow else vain + 1
        if vain:
            pieces.quarter()
        if vain > len(PAUSES) or tries == most_tries:
            raise SourceError(f"{whose}/{name} cannot be read, {tries} tries: {why}", _HINT)
        seconds = PAUSES[max(0, vain - 1)]
        notice(f"{whose}/{name}: {why}; trying again in {seconds:g} s")
        pause(seconds)


class _PieceSize:
    """How much of a file to ask for at once: little at first, as a request cannot be cut short."""

    def __init__(self) -> None:
        self._size, self._limit = LEAST_BYTES, _PIECE_BYTES
        self._asked = monotonic()

    def next(self) -> int:
        """Bytes of the piece that is asked for now."""
        self._asked = monotonic()
        return self._size

    def came(self, size: int) -> None:
        """A piece has come."""
        if size == self._size and monotonic() - self._asked < _QUICK_SECONDS:
            self._size = min(self._limit, 4 * self._size)

    def quarter(self) -> None:
        """It did not come whole."""
        self._size = self._limit = max(LEAST_BYTES, self._size // 4)


_HINT = (
    "Look whether this machine can reach the store, whether the folder is there, and whether you "
    "may read it"
)
