"""Fetch files of a store: resume where they broke off, retry with back-off, check what arrives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from distsgd.data.folder_files import open_inside
from distsgd.data.remote.stores import Piece, Refused, Store, WebFolder
from distsgd.data.system import pause
from distsgd.errors import CorruptDataError, SourceError, storage_error

__all__ = ["Fetcher", "Pace", "TooSlow", "download"]

PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each further attempt, after as many attempts that brought nothing new."""

_MOST_ATTEMPTS = 50
"""Plus one for each of the smallest pieces of the file."""

_SMALL_BYTES = 64 << 20
_LEAST_BYTES = 64 << 10
"""The smallest piece, and what has to arrive in `_WINDOW_SECONDS`: 3.3 KB/s."""

_WINDOW_SECONDS = 20.0
_SLOW_SECONDS, _SLOW_BYTES = 10.0, 512 << 10
"""Fewer bytes than these in the first seconds are reported."""

_PIECE_BYTES = 16 << 20
_QUICK_SECONDS = 1.0
"""After a piece that took less than this, the next may be four times as large. An attempt that
brought nothing new quarters it, so that even a store that breaks off early is read piece by
piece."""

_DOWNLOAD_SECONDS = (10.0, 30.0)
"""For `download`: seconds to connect, and without a byte."""


class TooSlow(OSError):
    """A server sends next to nothing, and could continue for days."""


class Pace:
    """Measures how fast the bytes of one response arrive.

    Args:
        slow: called once, with words such as "less than 512 KiB in 10 s", if it starts slowly.
        clock: returns seconds.
    """

    def __init__(
        self, slow: Callable[[str], None] = lambda _: None, clock: Callable[[], float] = monotonic
    ) -> None:
        self._slow, self._clock = slow, clock
        self._start = self._window_start = clock()
        self._total = self._in_window = 0
        self._judged = False

    def count(self, size: int) -> None:
        """Count bytes that have arrived since the last call; 0 if only time has passed.

        Raises:
            TooSlow: less than 64 KiB arrived in 20 s.
        """
        now = self._clock()
        self._total += size
        self._in_window += size
        if now - self._start >= _SLOW_SECONDS and not self._judged:
            self._judged = True
            if self._total < _SLOW_BYTES:
                self._slow(f"less than {_SLOW_BYTES >> 10} KiB in {_SLOW_SECONDS:g} s")
        if now - self._window_start >= _WINDOW_SECONDS:
            if self._in_window < _LEAST_BYTES:
                raise TooSlow(f"less than {_LEAST_BYTES >> 10} KiB in {_WINDOW_SECONDS:g} s")
            self._window_start, self._in_window = now, 0


class Fetcher:
    """Fetches files of a store.

    Args:
        store: the store.
        name: what the user calls its folder.
        notice: receives a line about each failed attempt, and about a slow store.
        stopped: whether the files are not wanted any more; called with each piece.
        patient: retry after an attempt that brought nothing new, up to five times. An attempt that
            did is followed by another one in any case.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        notice: Callable[[str], None] = lambda _: None,
        *,
        stopped: Callable[[], bool] = lambda: False,
        patient: bool = True,
    ) -> None:
        self._store, self._name, self._notice = store, name, notice
        self._stopped, self._patient = stopped, patient

    def read(self, file: str) -> bytes:
        """The content of a small file of unknown size.

        Raises:
            SourceError: it cannot be read, or is larger than any manifest.
        """
        content = bytearray()

        def write(piece: Piece) -> None:
            content.extend(piece)
            if len(content) > _SMALL_BYTES:
                raise SourceError(f"{self._name}/{file} is too large", "Check what is there")

        self._follow(file, 0, None, write)
        return bytes(content)

    def fetch(
        self,
        file: str,
        size: int,
        sha256: str,
        part: Path,
        *,
        resume: bool = False,
        arrived: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Fetch a file to ``part``, which stays if it breaks off.

        Args:
            file: name of the file in the folder.
            size: bytes that it must have.
            sha256: checksum that it must have; a file with another one is fetched once more.
            part: where to write it.
            resume: whether ``part`` may hold the beginning of it.
            arrived: called with the number of bytes that ``part`` holds.

        Raises:
            SourceError: it cannot be read, or is not wanted any more.
            CorruptDataError: its checksum was wrong twice; ``part`` is removed.
            StorageError: ``part`` cannot be written.
        """
        for again in (False, True):
            found = self._fetch_once(file, size, part, resume and not again, arrived)
            if found == sha256:
                return
            if not again:
                self._notice(
                    f"{self._name}/{file} has arrived with a wrong SHA-256; fetching it once more"
                )
        part.unlink()
        raise CorruptDataError(
            f"{self._name}/{file} has the wrong checksum: SHA-256 {found[:16]}..., "
            f"not {sha256[:16]}...",
            "It has been altered or damaged there: replace it, or use another source",
        )

    def _fetch_once(
        self, file: str, size: int, part: Path, resume: bool, arrived: Callable[[int], None]
    ) -> str:
        """Write a file to ``part``; returns its SHA-256."""
        try:
            with os.fdopen(open_inside(part, os.O_RDWR | os.O_CREAT), "r+b") as target:
                have = os.fstat(target.fileno()).st_size if resume else 0
                have = have if have <= size else 0
                digest = hashlib.sha256()
                for _ in range(0, have, _PIECE_BYTES):
                    digest.update(target.read(min(_PIECE_BYTES, have - target.tell())))

                def write(piece: Piece) -> None:
                    digest.update(piece)
                    try:
                        target.write(piece)
                    except OSError as error:  # not an error of the store, so do not retry
                        raise storage_error(error, part) from None
                    if piece:
                        arrived(target.tell())

                self._follow(file, have, size, write)
                target.truncate()
        except OSError as error:
            raise storage_error(error, part) from None
        return digest.hexdigest()

    def _follow(
        self, file: str, have: int, size: int | None, write: Callable[[Piece], None]
    ) -> None:
        """Pass on the content from an offset on, through any number of interruptions."""
        what, vain, attempts, slow = f"{self._name}/{file}", 0, 0, False
        pieces, most = _PieceSize(), _MOST_ATTEMPTS + (size or 0) // _LEAST_BYTES

        def report_slow(reason: str) -> None:
            self._notice(f"{what} is slow: {reason}")

        while size is None or have < size:
            attempts, before, slow = attempts + 1, have, False
            pace = Pace(report_slow if attempts == 1 else lambda _: None)
            try:
                for piece in self._store.pieces(file, have, size, pieces.next):
                    have += len(piece)
                    if size is not None and have > size:
                        raise Refused(f"it is longer than the {size} bytes that it should have")
                    if self._stopped():
                        raise Refused("it is not wanted any more")
                    pieces.came(len(piece))
                    write(piece)
                    if size is None or have < size:
                        pace.count(len(piece))
                if size is None or have == size:
                    return
                reason = f"it ends after {have} of {size} bytes"
            except Refused as error:
                raise SourceError(f"{what} cannot be read: {error}", _HINT) from None
            except OSError as error:
                slow = isinstance(error, TooSlow)
                reason = str(error).partition("\n")[0].rstrip(".")
            vain = 0 if have > before and not slow else vain + 1
            if vain:
                pieces.quarter()
            if vain > (len(PAUSES) if self._patient else 0) or attempts == most:
                tries = f", {attempts} attempts" if attempts > 1 else ""
                raise SourceError(f"{what} cannot be read{tries}: {reason}", _HINT)
            seconds = PAUSES[max(0, vain - 1)] if PAUSES else 0.0
            self._notice(f"{what}: {reason}; trying again in {seconds:g} s")
            pause(seconds)


class _PieceSize:
    """How much of a file to request at once: little at first, as no request can be cancelled."""

    def __init__(self) -> None:
        self._size, self._limit = _LEAST_BYTES, _PIECE_BYTES
        self._asked = monotonic()

    def next(self) -> int:
        """Bytes of the piece that is requested now."""
        self._asked = monotonic()
        return self._size

    def came(self, size: int) -> None:
        """Grow the next piece if this one was whole and quick."""
        if size == self._size and monotonic() - self._asked < _QUICK_SECONDS:
            self._size = min(self._limit, 4 * self._size)

    def quarter(self) -> None:
        """Shrink the pieces, after an attempt that brought nothing."""
        self._size = self._limit = max(_LEAST_BYTES, self._size // 4)


_HINT = "Check the network, that the file is there, and that you may read it"


def download(url: str, path: Path, size: int, sha256: str, arrived: Callable[[int], None]) -> None:
    """Download a file from a web server; resumes a part that an earlier call has left.

    Args:
        url: of the file.
        path: where to put it, once it is complete.
        size: bytes that it must have.
        sha256: checksum that it must have.
        arrived: called with the number of bytes that are here.

    Raises:
        SourceError: the server cannot be reached, or breaks off; the part is kept.
        CorruptDataError: the file is not what it should be; it is removed.
        StorageError: the disk is full or cannot be written.
    """
    folder, _, file = url.rpartition("/")
    part = path.with_name(path.name + ".part")
    fetcher = Fetcher(WebFolder(folder, _DOWNLOAD_SECONDS), folder, patient=False)
    try:
        fetcher.fetch(file, size, sha256, part, resume=True, arrived=arrived)
    except SourceError:
        if not part.stat().st_size:
            part.unlink()
        raise
    part.replace(path)
