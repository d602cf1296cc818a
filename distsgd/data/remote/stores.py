"""Reading files of a remote folder: object stores through pyarrow, web servers through requests."""

from __future__ import annotations

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

from distsgd.data.folder_files import reader_inside
from distsgd.data.remote.http import arriving, reason
from distsgd.data.remote.uri import Uri
from distsgd.errors import NotPlainFile, SourceError

__all__ = ["Piece", "Refused", "Store", "open_store", "reads_hang"]

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
