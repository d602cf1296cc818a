"""What the tests of the data layer share: small datasets, archives, snapshots, a web site."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import pickle
import struct
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from distsgd.data import manifest as manifest_module
from distsgd.data.dataset import Dataset
from distsgd.data.locations import SAMPLE
from distsgd.data.manifest import MANIFEST, Manifest
from distsgd.data.shards import write_dataset

LOCK = ".cifar10.lock"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder, but the lock, with its checksum."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def times(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of a folder's files."""
    stats = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> bool:
    """Poll until a condition holds; False after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    return True


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Flip one bit of a file, in place."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


# --- small datasets

TINY_SHAPE = (3, 2, 2)
TINY_CLASSES = ("ant", "bee", "cow")


def tiny_examples(rows: int) -> tuple[Any, Any]:
    pixels = np.random.default_rng(rows).integers(0, 256, (rows, 12), dtype=np.uint8)
    return pixels, (np.arange(rows) % 3).astype(np.uint8)


def write_tiny(folder: Path, rows: int = 20, shards: int = 2) -> Manifest:
    """Write a dataset of a few bytes; its pixels are ``tiny_examples(rows)``."""
    folder.mkdir()
    return write_dataset(
        folder,
        name="tiny",
        shape=TINY_SHAPE,
        classes=TINY_CLASSES,
        train=tiny_examples(rows),
        test=tiny_examples(5),
        shards=shards,
    )


def sign_again(folder: Path, **changes: Any) -> None:
    """Change a manifest and give it the checksum that fits."""
    content = json.loads((folder / MANIFEST).read_text())
    del content["digest"]
    content |= changes
    content["digest"] = manifest_module._digest(content)
    (folder / MANIFEST).write_text(json.dumps(content))


# --- archives


def pack(folder: Path, archive: Path, inside: str, level: int = 0) -> Path:
    """A gzipped tar of a folder; level 0 is quick, and as good a gzip as any."""
    with tarfile.open(archive, "w:gz", compresslevel=level) as tar:
        tar.add(folder, inside)
    return archive


class _Python2Pickler(pickle._Pickler):
    """Writes bytes as the `str` of Python 2, which is what the official archive holds."""

    dispatch: ClassVar[Any] = dict(pickle._Pickler.dispatch)

    def save_str_of_python2(self, text: bytes) -> None:
        short = len(text) < 256
        head = b"U" + bytes([len(text)]) if short else b"T" + struct.pack("<i", len(text))
        self.write(head + text)
        self.memoize(text)

    dispatch[bytes] = save_str_of_python2


def python2_pickle(value: object) -> bytes:
    out = io.BytesIO()
    _Python2Pickler(out, protocol=2).dump(value)
    return out.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1)


def python3_pickle(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def python_batch(records: Any, name: str) -> dict[bytes, object]:
    """One batch as the official python archive words it."""
    return {
        b"batch_label": name.replace("_", " ").encode(),
        b"labels": records[:, 0].tolist(),
        b"data": np.ascontiguousarray(records[:, 1:]),
        b"filenames": [b"image_%05d.png" % number for number in range(len(records))],
    }


# --- a web site


@dataclass
class Site:
    """How a web server on the loopback behaves, and what it was asked.

    Attributes:
        content: the one file that it serves, at any path.
        ranges: it answers requests for a part.
        cut_after: it closes the connection after so many bytes of an answer.
        stall_after: it stops sending, and holds the connection, after so many bytes.
        drip: seconds that it takes for each byte.
        tells_length: it sends Content-Length.
        gzips: it sends the content compressed to who accepts that.
        status: it answers only this.
        asked: the Range header of every request, "" where there was none.
        sent: bytes of content sent in each answer.
    """

    content: bytes = b""
    ranges: bool = True
    cut_after: int | None = None
    stall_after: int | None = None
    drip: float = 0.0
    tells_length: bool = True
    gzips: bool = False
    status: int | None = None
    url: str = ""
    asked: list[str] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.site.asked.append(asked)
        start = int(asked[len("bytes=") : -1]) if asked and self.site.ranges else 0
        if self.site.status is not None:
            self._head(self.site.status, b"")
        elif start and start >= len(self.site.content):
            self._head(416, b"")
        else:
            self._send(206 if start else 200, self.site.content[start:])

    def _head(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if self.site.tells_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()

    def _send(self, status: int, body: bytes) -> None:
        if self.site.gzips and "gzip" in self.headers.get("Accept-Encoding", ""):
            self._head(status, body := gzip.compress(body), Content_Encoding="gzip")
        else:
            self._head(status, body)
        limits = [n for n in (self.site.cut_after, self.site.stall_after) if n is not None]
        part = body[: min(limits, default=len(body))]
        self.site.sent.append(len(part))  # before: who asked may look as soon as it has all
        with contextlib.suppress(ConnectionError):  # who asked may have gone
            while self.site.drip and not self.site.closing.wait(self.site.drip):
                self.wfile.write(part[:1])
                part = part[1:]
            self.wfile.write(part)
        if self.site.stall_after is not None:
            self.site.closing.wait(300)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def running_site() -> Iterator[Site]:
    site = Site()
    handler = type("Handler", (_Handler,), {"site": site})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        site.url = f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield site
        finally:
            site.closing.set()
            server.shutdown()
            thread.join()


SHARDS = 16
"""Of the sample in many shards, as stores hold it."""


def sample_in_shards(folder: Path, shards: int) -> Path:
    """The sample written anew in so many training shards, into a new folder; returns it."""
    sample = Dataset(SAMPLE)
    train, test = (
        tuple(np.concatenate(found) for found in zip(*split.batches(), strict=True))
        for split in (sample.train, sample.test)
    )
    folder.mkdir(parents=True)
    write_dataset(
        folder, name="sample", shape=sample.manifest.shape, classes=sample.manifest.classes,
        train=train, test=test, shards=shards,
    )  # fmt: skip
    return folder
