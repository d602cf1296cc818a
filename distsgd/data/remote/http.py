"""One file over HTTP: resumed where it was cut off, and checked before it is used.

Whether a server gives its bytes fast enough: a slow one is named, a dripping one given up.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import requests
from urllib3.exceptions import ProtocolError, ReadTimeoutError, SSLError

from distsgd.data.folder_files import open_inside, reader_inside
from distsgd.errors import CorruptDataError, SourceError, storage_error

__all__ = ["LEAST_BYTES", "Pace", "Progress", "TooSlow", "arriving", "download", "reason"]


LEAST_BYTES = 64 << 10
"""That have to come in each `_WINDOW_SECONDS`: 3.3 KB/s."""
_WINDOW_SECONDS = 20.0

_SLOW_SECONDS, _SLOW_BYTES = 10.0, 512 << 10
"""Fewer bytes than these in the first seconds are worth a word."""


class TooSlow(OSError):
    """A server gives next to nothing, and may go on doing so for days."""


class Pace:
    """Counts the bytes of one answer, against the clock.

    Args:
        slow: called once, with words such as "less than 512 KiB in 10 s", if it begins slowly.
        clock: in seconds.
    """

    def __init__(
        self, slow: Callable[[str], None] = lambda _: None, clock: Callable[[], float] = monotonic
    ) -> None:
        self._slow, self._clock = slow, clock
        self._begun = self._since = clock()
        self._came = self._came_since = 0
        self._named = False

    def count(self, size: int) -> None:
        """So many bytes have come since the last call, none if it is only time that has passed.

        Raises:
            TooSlow: fewer than `LEAST_BYTES` have come in 20 s.
        """
        now = self._clock()
        self._came += size
        self._came_since += size
        if now - self._begun >= _SLOW_SECONDS and not self._named:
            self._named = True
            if self._came < _SLOW_BYTES:
                self._slow(f"less than {_SLOW_BYTES >> 10} KiB in {_SLOW_SECONDS:g} s")
        if now - self._since >= _WINDOW_SECONDS:
            if self._came_since < LEAST_BYTES:
                raise TooSlow(f"less than {LEAST_BYTES >> 10} KiB in {_WINDOW_SECONDS:g} s")
            self._since, self._came_since = now, 0


Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is (0: unknown)."""

_CHUNK = 1 << 18
_TIMEOUT = (10, 30)
"""Seconds to connect, and without a byte."""


def download(url: str, path: Path, sha256: str, progress: Progress) -> None:
    """Fetch ``url`` to ``path``; a part left by an earlier try is continued.

    Raises:
        SourceError: the site cannot be reached or broke off; the part is kept.
        CorruptDataError: all was fetched and is not what it should be; it is removed.
        StorageError: the disk is full or cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        _fetch(url, part, progress)
    except requests.RequestException as error:
        raise SourceError(
            f"{url} cannot be fetched: {reason(error)}",
            "Check the network; what has arrived is kept, and the next try continues it",
        ) from None
    except OSError as error:
        raise storage_error(error, part) from None
    with reader_inside(part) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        raise CorruptDataError(
            f"{url} has the wrong checksum: SHA-256 {found[:16]}..., not {sha256[:16]}...",
            "It was removed; try again, or take another --source",
        )
    part.replace(path)


def _fetch(url: str, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # the bytes of the file itself
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        if answer.status_code == 416:  # the part is already whole, or longer than the file
            return
        answer.raise_for_status()
        if answer.status_code != 206:
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else 0
        pace = Pace()
        with os.fdopen(open_inside(part, os.O_RDWR | os.O_APPEND | os.O_CREAT), "ab") as file:
            file.truncate(have)
            for chunk in arriving(answer, _CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress("downloading", have, total)
                try:
                    pace.count(len(chunk))
                except TooSlow as error:
                    raise requests.ConnectionError(str(error)) from None
            file.flush()
            os.fsync(file.fileno())
    if have < total:
        raise requests.ConnectionError(f"it broke off after {have} of {total} bytes")


def arriving(answer: requests.Response, most: int) -> Iterator[bytes]:
    """The content of an answer as it arrives, in pieces of at most so many bytes.

    `Response.iter_content` waits until a piece is full, which from a server that drips takes days.

    Raises:
        requests.RequestException: it breaks off, or stops for longer than the answer's time limit.
    """
    try:
        while piece := answer.raw.read1(most):
            yield piece
    except ProtocolError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from error
    except (ReadTimeoutError, SSLError) as error:
        raise requests.ConnectionError(error) from error


def reason(error: requests.RequestException) -> str:
    """Why, in a few words."""
    text = str(error)
    if isinstance(error, requests.Timeout) or "timed out" in text:
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.HTTPError):
        return f"the site answers {error.response.status_code}"
    return "the site cannot be reached" if "Max retries" in text else text
