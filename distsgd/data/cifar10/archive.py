"""CIFAR-10: what it is, and its six batches out of any of the forms in which it is published.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".

Reading the pickles of the official python archive, and no others.

A pickle can call anything it names. This unpickler resolves the three names that the official
files need to build an array of bytes, and one more that Python 3 writes for byte strings when
the same content is pickled again; every other name is refused. The names of numpy lead to
stand-ins: numpy's own unpickling trusts what it is told, down to the flags that say which bytes
are pointers.
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
    """Stands in for numpy's dtype of single bytes."""

    def __init__(self, name: Any, *_: Any) -> None:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"the dtype {name!r} is not admitted")

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment: nothing to a single byte."""


class _Array:
    """Stands in for numpy's array."""

    values: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, column_major, content = state
        if not isinstance(dtype, _ByteType) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array of something else than bytes is not admitted")
        values = np.frombuffer(content, dtype=np.uint8)
        self.values = values.reshape(shape, order="F" if column_major else "C")


def _reconstruct(subtype: Any, shape: Any, dtype: Any) -> _Array:
    """An array still empty; its state follows in the pickle."""
    if subtype is not _Array:
        raise pickle.UnpicklingError("not a plain array")
    return _Array()


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in the old protocols; no other codec is admitted."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"the codec {encoding!r} is not admitted")
    return text.encode("latin-1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _ByteType,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Resolve an admitted name; refuse every other."""
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused") from None


def load_batch(content: bytes, name: str) -> tuple[np.ndarray[Any, Any], list[int]]:
    """The pixels, shape (rows, 3072), uint8, and labels of one pickled batch.

    Raises:
        SourceError: the pickle names something else than data, or is not a batch.
    """
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a hostile or broken pickle can raise anything
        # Also a MemoryError: a damaged pickle asks for any number of bytes.
        raise SourceError(
            f"{name} is not a pickle that can be read safely: {error}",
            "Use the official archive, unchanged",
        ) from None
    if not isinstance(batch, dict):
        raise SourceError(f"{name} holds no batch", "Use the official archive, unchanged")
    array, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    data = array.values if isinstance(array, _Array) else None
    if not (
        data is not None
        and data.ndim == 2
        and isinstance(labels, list)
        and len(labels) == len(data)
        and all(isinstance(label, int) and 0 <= label < 256 for label in labels)
    ):
        raise SourceError(f"{name} holds no batch", "Use the official archive, unchanged")
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
"""Batch name -> records of the binary form, shape (10000, 3073): label, then the pixels."""

Examples = tuple[Bytes, Ints]
"""Pixels, shape (rows, 3072), and labels, shape (rows,)."""

_SAMPLE_TRAIN, _SAMPLE_TEST = 150, 40
"""Images of each class in the embedded sample."""

_Read = Callable[[str], bytes]
_LABEL_FILES = ("train_lables.json", "test_lables.json")  # spelt so in the package


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
    """One image a row of 1024 RGB pixels; the labels lie in two JSON lists."""
    rows = ROWS["test"]
    try:
        image = np.asarray(Image.open(io.BytesIO(read(f"{name}.png"))).convert("RGB"))
        start = 0 if name == "test_batch" else (int(name[-1]) - 1) * rows
        labels = json.loads(read(_LABEL_FILES[name == "test_batch"]))[start : start + rows]
        pixels = image.reshape(rows, 1024, 3).transpose(0, 2, 1).reshape(rows, _FEATURES)
        return _join(labels, pixels)
    except Exception as error:  # on a broken file a decoder of Pillow's can raise anything
        raise machine_trouble(error, f"{name}.png") or CorruptDataError(
            f"{name}.png or its labels cannot be read: {error}"
        ) from None


_FORMS: dict[str, Callable[[_Read, str], Bytes]] = {
    ".bin": _from_binary, "": _from_pickle, ".png": _from_png,
}  # fmt: skip


def _files(suffix: str) -> set[str]:
    """All files of one form."""
    labels = _LABEL_FILES if suffix == ".png" else ()
    return {f"{batch}{suffix}" for batch in BATCHES}.union(labels)


def _read_records(names: set[str], read: _Read, where: Path) -> Records:
    """The records of whichever form all six batches are there in."""
    for suffix, decode in _FORMS.items():
        if _files(suffix) <= names:
            return {batch: decode(read, batch) for batch in BATCHES}
    raise SourceError(
        f"{where} does not hold the six batches of CIFAR-10",
        "Give cifar-10-python.tar.gz, cifar-10-binary.tar.gz, or the folder unpacked from either",
    )


def read_archive(path: Path) -> Records:
    """The records of an archive (gzipped tar). Nothing is unpacked onto the disk.

    Raises:
        SourceError: it is not such an archive, or it is cut short.
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
                        raise EOFError(f"{name} is cut short")
            # To the end: only there does gzip compare its own checksum.
            while archive.fileobj is not None and archive.fileobj.read(1 << 20):
                pass
    except FileNotFoundError:
        raise SourceError(f"there is no file {path}", "Check the path given to --source") from None
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if trouble := machine_trouble(error, path):
            raise trouble from None
        why, *_ = str(error).split(":\n")
        raise SourceError(
            f"{path} is not a whole archive: {why}", "It may be cut short; download it again"
        ) from None
    return _read_records(set(members), members.__getitem__, path)


def read_folder(folder: Path) -> Records:
    """The records of an unpacked archive, given its folder or the folder around it.

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
            "Check the folder given to --source",
        ) from None
    return _read_records(set(), lambda _: b"", folder)


def _content(path: Path) -> bytes:
    require_file(path)
    return path.read_bytes()


def verify_records(records: Records) -> None:
    """Check the six batches, byte for byte, against the MD5 of the official binary files.

    Raises:
        CorruptDataError: names the first batch that differs.
    """
    for batch, expected in BATCHES.items():
        found = hashlib.md5(records[batch].tobytes(), usedforsecurity=False)
        if found.hexdigest() != expected:
            raise CorruptDataError(
                f"{batch} is not the official one: MD5 {found.hexdigest()} instead of {expected}",
                "The source has been altered or damaged; take it from another one",
            )


def examples_of(records: Records) -> tuple[Examples, Examples]:
    """The training and the test examples."""
    train = np.concatenate([batch for name, batch in records.items() if name != "test_batch"])
    return _split(train), _split(records["test_batch"])


def sample_of(records: Records) -> tuple[Examples, Examples]:
    """Those of the embedded sample: the first images of every class, in their own order."""
    (train, test), counts = examples_of(records), (_SAMPLE_TRAIN, _SAMPLE_TEST)
    return _first_of_each_class(train, counts[0]), _first_of_each_class(test, counts[1])


def records_of(train: Iterable[Examples], test: Iterable[Examples]) -> Records:
    """The six batches from the examples in order, in pieces of any length."""
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
