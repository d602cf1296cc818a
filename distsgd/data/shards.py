"""Shards: Arrow IPC files of images and labels, memory-mapped and read without copying."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from distsgd.core.arrays import Bytes, Ints
from distsgd.data.column_scale import ColumnScale
from distsgd.data.folder_files import mappable
from distsgd.data.locations import repair_hint
from distsgd.data.manifest import MANIFEST, Manifest, Shard
from distsgd.data.text_files import some_of
from distsgd.data.verified import Found, Identity, checksum, found_before, hashed, identity_of
from distsgd.errors import CorruptDataError, DatasetError, machine_trouble

__all__ = [
    "DatasetWriter",
    "OpenShard",
    "label_dtype",
    "open_shard",
    "shard_spans",
    "write_dataset",
    "write_shard",
]


@lru_cache(maxsize=8)
def _schema(shape: tuple[int, ...], classes: tuple[str, ...]) -> pa.Schema:
    """Image as a fixed-shape tensor of uint8 (channel, row, column), label as uint8 or uint16."""
    names = json.dumps(list(classes))
    label = pa.from_numpy_dtype(label_dtype(len(classes)))
    return pa.schema(
        [
            pa.field("image", pa.fixed_shape_tensor(pa.uint8(), list(shape)), nullable=False),
            pa.field("label", label, nullable=False, metadata={"classes": names}),
        ],
        metadata={"classes": names, "shape": json.dumps(list(shape))},
    )


def label_dtype(classes: int) -> type[np.unsignedinteger[Any]]:
    """Labels are kept as bytes where there are no more than 256 classes."""
    return np.uint8 if classes <= 256 else np.uint16


def write_shard(
    path: Path, pixels: Bytes, labels: Ints, shape: Sequence[int], classes: Sequence[str]
) -> Shard:
    """Write one shard and return its entry for the manifest.

    Args:
        pixels: shape (rows, features).
        labels: shape (rows,); uint8, or uint16 if there are more than 256 classes.
    """
    schema = _schema(tuple(shape), tuple(classes))
    storage = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), pixels.shape[1])
    images = pa.ExtensionArray.from_storage(schema.field("image").type, storage)
    batch = pa.record_batch([images, pa.array(labels)], schema=schema)
    with (
        mappable(path, os.O_RDWR | os.O_CREAT) as opened,
        pa.OSFile(opened, "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        writer.write_batch(batch)
    return Shard(path.name, len(labels), path.stat().st_size, checksum(path))


def write_dataset(
    folder: Path,
    *,
    name: str,
    shape: Sequence[int],
    classes: Sequence[str],
    train: tuple[Bytes, Ints],
    test: tuple[Bytes, Ints],
    shards: int,
) -> Manifest:
    """Write a whole dataset into an empty folder, the manifest last.

    Args:
        train: pixels, shape (rows, features), and labels, shape (rows,).
        test: likewise; always one shard.
        shards: training shards, of nearly equal length.
    """
    writer = DatasetWriter(folder, shape, classes)
    for split, (pixels, labels), number in (("train", train, shards), ("test", test, 1)):
        for file, span in shard_spans(split, len(labels), number):
            writer.write(split, file, pixels[span], labels[span])
    return writer.finish(name)


class DatasetWriter:
    """Writes a dataset shard by shard into an empty folder.

    Args:
        folder: where to.
        shape: of an example.
        classes: names of the classes.
    """

    def __init__(self, folder: Path, shape: Sequence[int], classes: Sequence[str]) -> None:
        self._folder, self._shape, self._classes = folder, tuple(shape), tuple(classes)
        self._written: dict[str, list[Shard]] = {"train": [], "test": []}
        self._sums = np.zeros(math.prod(shape), dtype=np.int64)

    def write(self, split: str, file: str, pixels: Bytes, labels: Ints) -> None:
        """The next shard of a split: pixels, shape (rows, features), and labels."""
        if split == "train":
            self._sums += pixels.sum(axis=0, dtype=np.int64)
        written = write_shard(self._folder / file, pixels, labels, self._shape, self._classes)
        self._written[split].append(written)

    def finish(self, name: str, scale: ColumnScale | None = None) -> Manifest:
        """Write the manifest."""
        manifest = Manifest(
            name=name,
            shape=self._shape,
            classes=self._classes,
            pixel_sums=tuple(int(n) for n in self._sums),
            train=tuple(self._written["train"]),
            test=tuple(self._written["test"]),
            scale=scale,
        )
        (self._folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return manifest


def shard_spans(split: str, rows: int, shards: int) -> list[tuple[str, slice]]:
    """Name and rows of each shard of a split, of nearly equal length."""
    cuts = [rows * i // shards for i in range(shards + 1)]
    return [
        (f"{split}-{number:05d}-of-{shards:05d}.arrow", slice(low, high))
        for number, (low, high) in enumerate(pairwise(cuts))
    ]


class OpenShard(NamedTuple):
    """A mapped shard, not yet checked.

    Attributes:
        pixels: shape (rows, features), read-only.
        labels: shape (rows,), read-only.
        path: the file.
        identity: of the file that is mapped.
        content: all of its bytes, mapped; the file itself is closed, so that the number of shards
            is not bounded by that of open files.
        sha256: that it should have.
    """

    pixels: Bytes
    labels: Ints
    path: Path
    identity: Identity
    content: pa.Buffer
    sha256: str

    def verify(self) -> Found | None:
        """Check what is mapped, unless that has been done.

        Returns:
            what others may believe as well, if they may.

        Raises:
            CorruptDataError: it is not what the manifest says.
            StorageError: the machine keeps it from being read.
        """
        if self._found() != self.sha256:
            raise CorruptDataError(
                f"the shard {self.path} is corrupt: its SHA-256 is not the manifest's",
                repair_hint(self.path.parent),
            )
        found = found_before(self.identity)
        return (self.identity, found) if found else None

    def _found(self) -> str:
        try:
            before = found_before(identity := identity_of(self.path))
            if not before:
                # Read, not looked at through the mapping: a disk that fails is then an error,
                # and not the end of the process.
                identity, before = hashed(self.path)
            if identity == self.identity:
                return before
        except FileNotFoundError:
            pass
        except OSError as error:
            raise machine_trouble(error, self.path) or CorruptDataError(
                f"the shard {self.path} cannot be read: {error.strerror}",
                repair_hint(self.path.parent),
            ) from None
        # Another file lies there by now; what is mapped is what counts.
        return hashlib.sha256(self.content).hexdigest()


def open_shard(path: Path, entry: Shard, manifest: Manifest) -> OpenShard:
    """Map one shard; nothing is read before it is used, nothing is copied.

    Raises:
        DatasetError: the file is missing or of another schema.
        CorruptDataError: it is not a whole Arrow file.
        StorageError: the machine keeps it from being read.
    """
    try:
        before = identity_of(path)
        with mappable(path) as opened, pa.memory_map(opened) as file:
            content = file.read_buffer()
        schema = pa.ipc.open_file(content).schema
        if schema != _schema(tuple(manifest.shape), tuple(manifest.classes)):
            raise DatasetError(
                f"the shard {path} has another schema than its dataset: {some_of(schema.names)}",
                repair_hint(path.parent),
            )
        batch = _only_batch(content)
        if len(batch) != entry.rows:
            raise CorruptDataError(
                f"the shard {path} has {len(batch)} rows, not {entry.rows}",
                repair_hint(path.parent),
            )
        batch.validate()  # that its buffers are as long as its rows need
        pixels = batch.column("image").storage.flatten().to_numpy(zero_copy_only=True)
        labels = batch.column("label").to_numpy(zero_copy_only=True)
        pixels = pixels.reshape(entry.rows, manifest.features)
        return OpenShard(pixels, labels, path, before, content, entry.sha256)
    except FileNotFoundError:
        raise DatasetError(f"the shard {path} is missing", repair_hint(path.parent)) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise machine_trouble(error, path) or CorruptDataError(
            f"the shard {path} is not a whole Arrow file: {error}", repair_hint(path.parent)
        ) from None


def _only_batch(content: pa.Buffer) -> pa.RecordBatch:
    """The one record batch of a shard; Arrow itself aborts on some damaged ones in `read_all`.

    It is looked at before it is read: of a compressed one Arrow would allocate what it claims.

    Raises:
        ValueError: there is another number, or it is compressed.
    """
    reader = pa.ipc.open_file(content)
    if reader.num_record_batches != 1:
        raise ValueError(f"it has {reader.num_record_batches} parts, not 1")
    messages = pa.ipc.MessageReader.open_stream(content.slice(len(_MAGIC)))
    message = messages.read_next_message()
    if message.type == "schema":
        message = messages.read_next_message()
    if message.type != "record batch" or _is_compressed(bytes(message.metadata)):
        raise ValueError("it is compressed")
    return pa.ipc.read_record_batch(message, reader.schema)


_MAGIC = b"ARROW1\0\0"
_MESSAGE_HEADER, _BATCH_COMPRESSION = 2, 3
"""Numbers of fields in Arrow's Message.fbs: of the header of a message, and of a batch's
compression."""


def _is_compressed(metadata: bytes) -> bool:
    """Whether the metadata of a record batch, a flatbuffer, has a field for its compression.

    Raises:
        ValueError: it is none.
    """

    def field(table: int, number: int) -> int:
        """Where a field of a table is; 0 if it has none."""
        (back,) = struct.unpack_from("<i", metadata, table)
        (size,) = struct.unpack_from("<H", metadata, table - back)
        place = 4 + 2 * number
        at = struct.unpack_from("<H", metadata, table - back + place)[0] if place < size else 0
        return table + int(at) if at else 0

    try:
        header = field(struct.unpack_from("<I", metadata)[0], _MESSAGE_HEADER)
        batch = header + struct.unpack_from("<I", metadata, header)[0]
        return bool(field(batch, _BATCH_COMPRESSION))
    except struct.error:
        raise ValueError("its metadata is damaged") from None
