"""Reading files of a remote folder: object stores through pyarrow, web servers through requests.

One file of a store into a local one: tried again with back-off, and checked as it arrives.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Protocol
from urllib.parse import quote

import requests
from pyarrow import fs
from pyarrow.dataset import IpcFileFormat

from distsgd.data.folder_files import open_inside, reader_inside
from distsgd.data.remote.addresses import Uri
from distsgd.data.remote.http import LEAST_BYTES, Pace, TooSlow, arriving, reason
from distsgd.data.system import pause
from distsgd.errors import CorruptDataError, NotPlainFile, SourceError, storage_error

__all__ = ["Refused", "Store", "fetch_checked", "fetch_small", "open_store", "reads_hang"]


_WEB_PIECE = 1 << 20
_FORMAT = IpcFileFormat()
_CONNECT_SECONDS, _SILENT_SECONDS = 5.0, 10.0
_BEAT_SECONDS = 1.0


Piece = bytes | memoryview


class Refused(Exception):
    """The store has answered, and the answer will be the same the next time."""


class Store(Protocol):
    """A folder somewhere else."""

    def pieces(
        self, name: str, offset: int, size: int | None, most: Callable[[], int]
    ) -> Iterator[Piece]:
        """The content of a file from an offset on; each piece is used before the next is asked for.

        While nothing arrives, empty pieces come, or the time limit of a silent connection.

        Args:
            name: of the file.
            offset: bytes to leave out.
            size: that it should have, or None.
            most: bytes of the next piece: what is lost of it when the store breaks off.

        Raises:
            Refused: there is no such file, or we may not read it.
            OSError: anything that may be better the next time.
        """
        ...


def open_store(uri: Uri) -> Store:
    """The store of a URI; nothing is asked of it yet.

    Raises:
        SourceError: this installation of pyarrow cannot talk to it.
    """
    if uri.scheme in ("http", "https"):
        host, _, path = uri.where.partition("/")
        return _WebFolder(f"{uri.scheme}://{host}/{quote(path)}")
    if uri.scheme == "file":
        return _LocalFolder(None, uri.where)
    makers: dict[str, Callable[[Uri], Any]] = {"s3": _s3, "gs": _gcs}
    try:
        return _FileSystemFolder(makers[uri.scheme](uri), uri.where)
    except (ImportError, NotImplementedError, OSError, ValueError) as error:
        raise SourceError(
            f"{uri.name} cannot be used: {_reason(error)}",
            "Look at its spelling, and at the settings of the store in the environment",
        ) from None


def _s3(uri: Uri) -> Any:
    options: dict[str, Any] = dict(uri.options)
    anonymous = _truth(options.pop("anonymous", ""))
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if given and "endpoint_override" not in options:
        scheme, _, options["endpoint_override"] = given.rstrip("/").rpartition("://")
        options.setdefault("scheme", scheme or "https")
    _quiet_s3()
    return fs.S3FileSystem(
        anonymous=anonymous, connect_timeout=_CONNECT_SECONDS, request_timeout=_SILENT_SECONDS,
        # Trying again is our business: what has arrived is kept, and the user is told.
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1), **options,
    )  # fmt: skip


@cache
def _quiet_s3() -> None:
    """Errors reach the user through us, not through a log of the library."""
    try:
        fs.initialize_s3(fs.S3LogLevel.Off)
    except OSError:  # somebody in this process has begun already
        return


def _gcs(uri: Uri) -> Any:
    from datetime import timedelta

    options: dict[str, Any] = dict(uri.options)
    anonymous = _truth(options.pop("anonymous", ""))
    limit = timedelta(seconds=_SILENT_SECONDS)
    return fs.GcsFileSystem(anonymous=anonymous, retry_time_limit=limit, **options)


def _truth(text: str) -> bool:
    return text.lower() in ("1", "true", "yes")


def _reason(error: Exception) -> str:
    """What pyarrow says, without what is said already."""
    text = (str(error).strip() or type(error).__name__).partition("\n")[0]
    said = re.search(r"AWS Error (\w+) during \w+ operation: (.*?)(; Details:.*)?$", text)
    return (f"{said[1]}: {said[2]}" if said and said[2] else said[1] if said else text).rstrip(". ")


_NEVER = (
    "ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH",
    "HTTP status 401", "HTTP status 403", "HTTP status 404", "PERMISSION_DENIED",
)  # fmt: skip


class _FileSystemFolder:
    def __init__(self, system: Any, folder: str) -> None:
        self._system, self._folder = system, folder
        self._buffers: list[bytearray] = []
        """To be used again: to get memory anew costs more than to fill it."""

    def pieces(
        self, name: str, offset: int, size: int | None, most: Callable[[], int]
    ) -> Iterator[Piece]:
        return _apart(self._read(f"{self._folder}/{name}", offset, size, most))

    def _read(
        self, path: str, offset: int, size: int | None, most: Callable[[], int]
    ) -> Generator[Piece, None, None]:
        buffer = self._buffers.pop() if self._buffers else bytearray()
        try:
            with self._opened(path, size) as file:
                end = self._size(file) if size is None else size
                file.seek(offset)
                while offset < end:
                    if len(buffer) < (wanted := min(most(), end - offset)):
                        buffer = bytearray(wanted)
                    room = memoryview(buffer)[:wanted]
                    if not (got := file.readinto(room)):
                        raise OSError(f"it gives no more after {offset} of {end} bytes")
                    offset += got
                    yield room[:got]
        except FileNotFoundError:
            raise Refused("there is no such file") from None
        except (PermissionError, NotPlainFile) as error:
            raise Refused(_reason(error)) from None
        except OSError as error:
            if any(word in str(error) for word in _NEVER):
                raise Refused(_reason(error)) from None
            raise OSError(_reason(error)) from None
        finally:
            self._buffers.append(buffer)

    def _opened(self, path: str, size: int | None) -> Any:
        if size is None:
            return self._system.open_input_file(path)
        # Only through a fragment can the size be told; the store is not asked for it then.
        return _FORMAT.make_fragment(path, self._system, file_size=size).open()

    def _size(self, file: Any) -> int:
        return int(file.size())


class _LocalFolder(_FileSystemFolder):
    def _opened(self, path: str, size: int | None) -> Any:
        return reader_inside(Path(path))

    def _size(self, file: Any) -> int:
        return os.fstat(file.fileno()).st_size


_reading: set[threading.Thread] = set()


def reads_hang(seconds: float = 1.0) -> bool:
    """Whether pyarrow still waits for a store, after so many seconds.

    No call ends such a read, and the interpreter does not exit before the store has answered.
    """
    until = monotonic() + seconds
    for thread in list(_reading):
        thread.join(max(0.0, until - monotonic()))
    return bool(_reading)


def _apart(steps: Generator[Piece, None, None]) -> Iterator[Piece]:
    """The same in a thread of its own, with an empty piece each second that a step takes.

    A step that hangs is left behind: pyarrow's calls have no time limit, and cannot be cancelled.
    """
    wanted: SimpleQueue[bool] = SimpleQueue()
    taken: SimpleQueue[Piece | Exception | None] = SimpleQueue()

    def run() -> None:
        try:
            while wanted.get():
                try:
                    taken.put(next(steps, None))
                except Exception as error:
                    taken.put(error)
        finally:
            steps.close()
            _reading.discard(threading.current_thread())

    thread = threading.Thread(target=run, daemon=True)
    _reading.add(thread)
    thread.start()
    try:
        while True:
            wanted.put(True)
            while True:
                with suppress(Empty):
                    found = taken.get(timeout=_BEAT_SECONDS)
                    break
                yield b""
            if isinstance(found, Exception):
                raise found
            if found is None:
                return
            yield found
    finally:
        wanted.put(False)


class _WebFolder:
    def __init__(self, address: str) -> None:
        self._address = address
        self._session = requests.Session()

    def pieces(
        self, name: str, offset: int, size: int | None, most: Callable[[], int]
    ) -> Iterator[Piece]:
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            with self._session.get(
                f"{self._address}/{quote(name)}", headers=headers, stream=True,
                timeout=(_CONNECT_SECONDS, _SILENT_SECONDS),
            ) as answer:  # fmt: skip
                if answer.status_code in (401, 403, 404, 410):
                    raise Refused(f"the server answers {answer.status_code}")
                answer.raise_for_status()
                skip = offset if answer.status_code != 206 else 0
                for piece in arriving(answer, _WEB_PIECE):
                    yield piece[skip:]
                    skip = max(0, skip - len(piece))
        except requests.RequestException as error:
            raise OSError(reason(error)) from None


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
