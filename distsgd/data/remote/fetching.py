"""One file of a store into a local one: tried again with back-off, and checked as it arrives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from distsgd.data.folder_files import open_inside
from distsgd.data.remote.stores import Piece, Refused, Store
from distsgd.data.system import pause
from distsgd.errors import CorruptDataError, SourceError, storage_error

__all__ = ["PAUSES", "Notice", "fetch_checked", "fetch_small"]

PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each further try, after as many that brought nothing new."""

_MOST_TRIES = 50
"""And as many more as there are smallest pieces."""
_MOST_BYTES = 64 << 20
_PIECE_BYTES, _LEAST_BYTES = 16 << 20, 256 << 10
"""Of a piece, at first and at last: each try that brings nothing new has it quartered, so that
what a store gives that breaks off again and again is kept all the same."""

Notice = Callable[[str], None]
"""Told of trouble that may pass, in words."""


def fetch_checked(
    store: Store, name: str, size: int, sha256: str, part: Path, whose: str, notice: Notice
) -> None:
    """Fetch a file to ``part``; what has arrived is kept from one try to the next.

    Args:
        store: to read from.
        name: of the file there.
        size: that it should have.
        sha256: likewise.
        part: where to.
        whose: what the user calls the dataset.
        notice: told of tries that failed.

    Raises:
        SourceError: it cannot be had.
        CorruptDataError: all has arrived, twice, and is not what it should be.
        StorageError: it cannot be written.
    """
    for again in (False, True):
        found = _fetch_once(store, name, size, part, whose, notice)
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


def _fetch_once(store: Store, name: str, size: int, part: Path, whose: str, notice: Notice) -> str:
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

            _follow(store, name, size, write, whose, notice)
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
) -> None:
    """Hand on the content piece by piece, however often it breaks off."""
    have = vain = tries = 0
    most, most_tries = _PIECE_BYTES, _MOST_TRIES + (size or 0) // _LEAST_BYTES
    while True:
        tries, before = tries + 1, have
        try:
            for piece in store.pieces(name, have, size, most):
                have += len(piece)
                if size is not None and have > size:
                    raise Refused(f"it is longer than the {size} bytes that the manifest says")
                write(piece)
            if size is None or have == size:
                return
            why = f"it ends after {have} of {size} bytes"
        except Refused as error:
            raise SourceError(f"{whose}/{name} cannot be read: {error}", _HINT) from None
        except OSError as error:
            why = str(error).partition("\n")[0].rstrip(".")
        vain = 0 if have > before else vain + 1
        if vain:
            most = max(_LEAST_BYTES, most // 4)
        if vain > len(PAUSES) or tries == most_tries:
            raise SourceError(f"{whose}/{name} cannot be read, {tries} tries: {why}", _HINT)
        seconds = PAUSES[max(0, vain - 1)]
        notice(f"{whose}/{name}: {why}; trying again in {seconds:g} s")
        pause(seconds)


_HINT = (
    "Look whether this machine can reach the store, whether the folder is there, and whether you "
    "may read it"
)
