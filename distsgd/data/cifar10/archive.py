"""CIFAR-10: its constants, and how to read its six batches from any published form.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".

A pickle can call anything that it names. The unpickler here resolves the three names that the
official files need to build an array of bytes, and one more that Python 3 writes for byte strings
if the same content is pickled again; it refuses every other name. The names of numpy lead to
stand-ins, as numpy's own unpickling trusts its input, down to the flags that say which bytes are
pointers.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distsgd.core.arrays import Bytes, Ints
from distsgd.data.text_files import require_file
from distsgd.errors import CorruptDataError, SourceError, machine_trouble
from distsgd.spelling import spelling

__all__ = [
    "BATCHES",
    "CLASSES",
    "ROWS",
    "SHAPE",
    "Examples",
    "Records",
    "examples_of",
    "load_batch",
    "read_archive",
    "read_folder",
    "records_of",
    "sample_of",
    "verify_records",
]


class _ByteType:
    """Stand-in for numpy's dtype of single bytes."""

    def __init__(self, name: Any, *_: Any) -> None:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"the dtype {name!r} is not allowed")

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and alignment: a single byte has none."""


class _Array:
    """Stand-in for numpy's array."""

    values: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, column_major, content = state
        if not isinstance(dtype, _ByteType) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array of anything but bytes is not allowed")
        values = np.frombuffer(content, dtype=np.uint8)
        self.values = values.reshape(shape, order="F" if column_major else "C")


def _reconstruct(subtype: Any, shape: Any, dtype: Any) -> _Array:
    """An empty array; its state follows in the pickle."""
    if subtype is not _Array:
        raise pickle.UnpicklingError("not a plain array")
    return _Array()


def _latin1(text: str, encoding: str) -> bytes:
    """The bytes that Python 3 writes as text in old protocols; no other codec is allowed."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"the codec {encoding!r} is not allowed")
    return text.encode("latin-1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _ByteType,
    ("_codecs", "encode"): _latin1,
}


_UNCHANGED = "Use the official archive, unchanged"


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Resolve an allowed name; refuse every other."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused") from None


def load_batch(content: bytes, name: str) -> tuple[np.ndarray[Any, Any], list[int]]:
    """The pixels, shape (rows, 3072), uint8, and labels of one pickled batch.

    Args:
        content: the pickle.
        name: name of its file, for errors.

    Raises:
        SourceError: the pickle names anything but data, or is not a batch.
    """
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a hostile or broken pickle can raise anything
        # Also a MemoryError: a damaged pickle may request any number of bytes.
        raise SourceError(
            f"{name} cannot be unpickled safely: {error}",
            _UNCHANGED,
        ) from None
    if not isinstance(batch, dict):
        raise SourceError(
            f"{name} is not a batch of CIFAR-10", "Use the official archive, unchanged"
        )
    array, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    data = array.values if isinstance(array, _Array) else None
    if not (
        data is not None
        and data.ndim == 2
        and isinstance(labels, list)
        and len(labels) == len(data)
        and all(isinstance(label, int) and 0 <= label < 256 for label in labels)
    ):
        raise SourceError(
            f"{name} is not a batch of CIFAR-10", "Use the official archive, unchanged"
        )
    return data, labels


CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
SHAPE = (3, 32, 32)
BATCHES = {
    "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
"""MD5 of the six files of the official binary archive."""

ROWS = {"train": 50_000, "test": 10_000}
"""Images of each split; all six batches have as many as the test set."""

_FEATURES = 3072
_LARGEST_MEMBER = 64 * 2**20

Records = dict[str, Bytes]
"""Batch name -> records of the binary form, shape (10000, 3073), uint8: label, then pixels."""

Examples = tuple[Bytes, Ints]
"""Pixels, shape (rows, 3072), uint8, and labels, shape (rows,)."""

_SAMPLE_TRAIN, _SAMPLE_TEST = 150, 40
"""Images of each class in the embedded sample."""

_Read = Callable[[str], bytes]
_LABEL_FILES = ("train_lables.json", "test_lables.json")  # the spelling of the package


def _from_binary(read: _Read, name: str) -> Bytes:
    content, rows = read(f"{name}.bin"), ROWS["test"]
    if len(content) != (size := rows * (_FEATURES + 1)):
        raise CorruptDataError(f"{name}.bin has {len(content)} bytes, not {size}")
    return np.frombuffer(content, dtype=np.uint8).reshape(rows, _FEATURES + 1)


def _join(labels: Any, pixels: Bytes) -> Bytes:
    return np.column_stack([np.asarray(labels, dtype=np.uint8), pixels])


def _from_pickle(read: _Read, name: str) -> Bytes:
    pixels, labels = load_batch(read(name), name)
    return _join(labels, pixels)


def _from_png(read: _Read, name: str) -> Bytes:
    """One example a row of 1024 RGB pixels; the labels are in two JSON lists."""
    rows = ROWS["test"]
    try:
        image = np.asarray(Image.open(io.BytesIO(read(f"{name}.png"))).convert("RGB"))
        start = 0 if name == "test_batch" else (int(name[-1]) - 1) * rows
        labels = json.loads(read(_LABEL_FILES[name == "test_batch"]))[start : start + rows]
        pixels = image.reshape(rows, 1024, 3).transpose(0, 2, 1).reshape(rows, _FEATURES)
        return _join(labels, pixels)
    except Exception as error:  # a decoder of Pillow can raise anything for a broken file
        raise machine_trouble(error, f"{name}.png") or CorruptDataError(
            f"{name}.png or its labels cannot be read: {error}"
        ) from None


_FORMS: dict[str, Callable[[_Read, str], Bytes]] = {
    ".bin": _from_binary, "": _from_pickle, ".png": _from_png,
}  # fmt: skip


def _files(suffix: str) -> set[str]:
    """The names of all files of one form."""
    labels = _LABEL_FILES if suffix == ".png" else ()
    return {f"{batch}{suffix}" for batch in BATCHES}.union(labels)


def _read_records(names: set[str], read: _Read, where: Path) -> Records:
    """The records, from the first form in which all six batches are there."""
    for suffix, decode in _FORMS.items():
        if _files(suffix) <= names:
            return {batch: decode(read, batch) for batch in BATCHES}
    raise SourceError(
        f"{where} does not have the six batches of CIFAR-10",
        "Give cifar-10-python.tar.gz, cifar-10-binary.tar.gz, or the folder unpacked from either",
    )


def read_archive(path: Path) -> Records:
    """The records of an archive (gzipped tar), which is not unpacked to disk.

    Raises:
        SourceError: it is not such an archive, or is truncated.
    """
    wanted = set().union(*map(_files, _FORMS))
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and name in wanted and member.size <= _LARGEST_MEMBER:
                    file = archive.extractfile(member)
                    members[name] = file.read() if file else b""
                    if len(members[name]) != member.size:
                        raise EOFError(f"{name} is truncated")
            # Read to the end, where gzip compares its checksum.
            while archive.fileobj is not None and archive.fileobj.read(1 << 20):
                pass
    except FileNotFoundError:
        raise SourceError(
            f"there is no file {path}", f"Check {spelling().setting('source')}"
        ) from None
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if trouble := machine_trouble(error, path):
            raise trouble from None
        why, *_ = str(error).split(":\n")
        raise SourceError(
            f"{path} is not a complete archive: {why}",
            "It may be truncated; download it again",
        ) from None
    return _read_records(set(members), members.__getitem__, path)


def read_folder(folder: Path) -> Records:
    """The records of an unpacked archive, from its folder or the folder around it.

    Raises:
        SourceError: the six batches are not there, or cannot be read.
    """
    inner = ("cifar-10-batches-py", "cifar-10-batches-bin", "package")
    try:
        for place in (folder, *(folder / name for name in inner)):
            names = {path.name for path in place.iterdir()} if place.is_dir() else set()
            if any(f"data_batch_1{suffix}" in names for suffix in _FORMS):
                return _read_records(names, lambda name, at=place: _content(at / name), place)  # type: ignore[misc]
    except OSError as error:
        raise SourceError(
            f"{error.filename or folder} cannot be read: {(error.strerror or str(error)).lower()}",
            f"Check {spelling().setting('source')}",
        ) from None
    return _read_records(set(), lambda _: b"", folder)


def _content(path: Path) -> bytes:
    require_file(path)
    return path.read_bytes()


def verify_records(records: Records) -> None:
    """Check the six batches against the MD5 of the official binary files.

    Raises:
        CorruptDataError: names the first batch that differs.
    """
    for batch, expected in BATCHES.items():
        found = hashlib.md5(records[batch].tobytes(), usedforsecurity=False)
        if found.hexdigest() != expected:
            raise CorruptDataError(
                f"{batch} is not the official one: MD5 {found.hexdigest()} instead of {expected}",
                "The source has been altered or damaged; use another one",
            )


def examples_of(records: Records) -> tuple[Examples, Examples]:
    """The training and the test examples."""
    train = np.concatenate([batch for name, batch in records.items() if name != "test_batch"])
    return _split(train), _split(records["test_batch"])


def sample_of(records: Records) -> tuple[Examples, Examples]:
    """The examples of the embedded sample: the first images of every class, in their order."""
    (train, test), counts = examples_of(records), (_SAMPLE_TRAIN, _SAMPLE_TEST)
    return _first_of_each_class(train, counts[0]), _first_of_each_class(test, counts[1])


def records_of(train: Iterable[Examples], test: Iterable[Examples]) -> Records:
    """The six batches, from the examples in order, in pieces of any length."""
    first = np.concatenate([np.column_stack(pair[::-1]) for pair in train])
    last = np.concatenate([np.column_stack(pair[::-1]) for pair in test])
    return dict(zip(BATCHES, [*np.split(first, len(BATCHES) - 1), last], strict=True))


def _split(batch: Bytes) -> Examples:
    return np.ascontiguousarray(batch[:, 1:]), batch[:, 0].copy()


def _first_of_each_class(examples: Examples, count: int) -> Examples:
    pixels, labels = examples
    chosen = [np.flatnonzero(labels == label)[:count] for label in range(len(CLASSES))]
    indices = np.sort(np.concatenate(chosen))
    return pixels[indices], labels[indices]
