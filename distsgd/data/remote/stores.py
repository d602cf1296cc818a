"""Read files of a remote folder: object stores through pyarrow, web servers through requests."""

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
from urllib3.exceptions import ProtocolError, ReadTimeoutError, SSLError

from distsgd.data.folder_files import reader_inside
from distsgd.data.remote.addresses import Uri
from distsgd.errors import NotPlainFile, SourceError

__all__ = ["Piece", "Refused", "Store", "WebFolder", "open_store", "reads_hang"]


_WEB_PIECE = 1 << 20
_FORMAT = IpcFileFormat()
_CONNECT_SECONDS, _SILENT_SECONDS = 5.0, 10.0
_BEAT_SECONDS = 1.0


Piece = bytes | memoryview


class Refused(Exception):
    """The store has refused, and will refuse again."""


class Store(Protocol):
    """A folder of files elsewhere."""

    def pieces(
        self, name: str, offset: int, size: int | None, most: Callable[[], int]
    ) -> Iterator[Piece]:
        """The content of a file from an offset on; a piece is valid until the next one.

        While nothing arrives, the iterator yields empty pieces or ends with a time-out.

        Args:
            name: name of the file in the folder.
            offset: bytes to leave out.
            size: bytes of the file; None if unknown.
            most: returns the bytes of the next piece, all of which are lost if it breaks off.

        Raises:
            Refused: there is no such file, or it may not be read.
            OSError: any other failure, which may pass.
        """
        ...


def open_store(uri: Uri) -> Store:
    """The store of a URI; sends nothing yet.

    Raises:
        SourceError: this installation of pyarrow does not support it.
    """
    if uri.scheme in ("http", "https"):
        host, _, path = uri.where.partition("/")
        return WebFolder(f"{uri.scheme}://{host}/{quote(path)}")
    if uri.scheme == "file":
        return _LocalFolder(None, uri.where)
    makers: dict[str, Callable[[Uri], Any]] = {"s3": _s3, "gs": _gcs}
    try:
        return _FileSystemFolder(makers[uri.scheme](uri), uri.where)
    except (ImportError, NotImplementedError, OSError, ValueError) as error:
        raise SourceError(
            f"{uri.name} cannot be used: {_reason(error)}",
            "Check its spelling, and the settings of the store in the environment",
        ) from None


def _s3(uri: Uri) -> Any:
    options: dict[str, Any] = dict(uri.options)
    anonymous = _truth(options.pop("anonymous", ""))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and "endpoint_override" not in options:
        scheme, _, options["endpoint_override"] = endpoint.rstrip("/").rpartition("://")
        options.setdefault("scheme", scheme or "https")
    _quiet_s3()
    return fs.S3FileSystem(
        anonymous=anonymous, connect_timeout=_CONNECT_SECONDS, request_timeout=_SILENT_SECONDS,
        # `Fetcher` retries: it keeps what has arrived, and tells the user.
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1), **options,
    )  # fmt: skip


@cache
def _quiet_s3() -> None:
    """Turn off the log of the library: its errors are raised, and reach the user that way."""
    try:
        fs.initialize_s3(fs.S3LogLevel.Off)
    except OSError:  # already initialised in this process
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
    """The message of an error of pyarrow, without the part that ours repeats."""
    text = (str(error).strip() or type(error).__name__).partition("\n")[0]
    aws = re.search(r"AWS Error (\w+) during \w+ operation: (.*?)(; Details:.*)?$", text)
    return (f"{aws[1]}: {aws[2]}" if aws and aws[2] else aws[1] if aws else text).rstrip(". ")


_NEVER = (
    "ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH",
    "HTTP status 401", "HTTP status 403", "HTTP status 404", "PERMISSION_DENIED",
)  # fmt: skip


class _FileSystemFolder:
    def __init__(self, system: Any, folder: str) -> None:
        self._system, self._folder = system, folder
        self._buffers: list[bytearray] = []
        """To reuse: allocating memory costs more than filling it."""

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
                        raise OSError(f"it ends after {offset} of {end} bytes")
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
        # Only a fragment takes the size of the file, which saves a request.
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
    """Whether pyarrow still waits for a store, after waiting up to ``seconds`` for it.

    Such a read cannot be cancelled, and the interpreter does not exit before the store answers.
    """
    until = monotonic() + seconds
    for thread in list(_reading):
        thread.join(max(0.0, until - monotonic()))
    return bool(_reading)


def _apart(steps: Generator[Piece, None, None]) -> Iterator[Piece]:
    """Run a generator in a thread, and yield an empty piece for each second that a step takes.

    A step that hangs is abandoned: pyarrow's calls have no time limit and cannot be cancelled.
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


class WebFolder:
    """A folder of a web server.

    Args:
        address: its URL, quoted, without a slash at the end.
        seconds: time limits for a connection, and for a silent one.
    """

    def __init__(
        self,
        address: str,
        seconds: tuple[float, float] = (_CONNECT_SECONDS, _SILENT_SECONDS),
    ) -> None:
        self._address, self._seconds = address, seconds
        self._session = requests.Session()

    def pieces(
        self, name: str, offset: int, size: int | None, most: Callable[[], int]
    ) -> Iterator[Piece]:
        """See `Store`; ``most`` is ignored, as a response can be broken off at any time."""
        headers = {"Accept-Encoding": "identity"}  # the bytes of the file itself
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            with self._session.get(
                f"{self._address}/{quote(name)}", headers=headers, stream=True,
                timeout=self._seconds,
            ) as answer:  # fmt: skip
                if answer.status_code in (401, 403, 404, 410):
                    raise Refused(f"the server answers {answer.status_code}")
                answer.raise_for_status()
                skip = offset if answer.status_code != 206 else 0
                for piece in _arriving(answer):
                    yield piece[skip:]
                    skip = max(0, skip - len(piece))
        except requests.RequestException as error:
            raise OSError(_web_reason(error)) from None


def _arriving(answer: requests.Response) -> Iterator[bytes]:
    """The content of a response as it arrives.

    `Response.iter_content` waits until a piece is full, which takes days when a server drips.

    Raises:
        requests.RequestException: it breaks off, or is silent for longer than its time limit.
    """
    try:
        while piece := answer.raw.read1(_WEB_PIECE):
            yield piece
    except ProtocolError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from error
    except (ReadTimeoutError, SSLError) as error:
        raise requests.ConnectionError(error) from error


def _web_reason(error: requests.RequestException) -> str:
    """Why a request failed, in a few words."""
    text = str(error)
    if isinstance(error, requests.Timeout) or "timed out" in text:
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.HTTPError):
        return f"the server answers {error.response.status_code}"
    return "the server cannot be reached" if "Max retries" in text else text
