"""Shards: Arrow IPC files of images and labels, which are memory-mapped and not copied."""

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
from distsgd.data.verified import (
    FileChecksum,
    Identity,
    checksum,
    hash_file,
    identity_of,
    known_checksum,
)
from distsgd.errors import CorruptDataError, DatasetError, machine_trouble

__all__ = [
    "DEFAULT_SHARDS",
    "DatasetWriter",
    "OpenShard",
    "label_dtype",
    "open_shard",
    "shard_spans",
    "write_dataset",
    "write_shard",
]


DEFAULT_SHARDS = 8
"""Training shards of a new dataset."""


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
    """The dtype of labels: uint8 for up to 256 classes, else uint16."""
    return np.uint8 if classes <= 256 else np.uint16


def write_shard(
    path: Path, pixels: Bytes, labels: Ints, shape: Sequence[int], classes: Sequence[str]
) -> Shard:
    """Write one shard and return its entry for the manifest.

    Args:
        path: the file.
        pixels: shape (rows, features), uint8.
        labels: shape (rows,), of `label_dtype`.
        shape: shape of an example.
        classes: names of the classes.
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
        folder: the folder.
        name: name of the dataset.
        shape: shape of an example.
        classes: names of the classes.
        train: pixels, shape (rows, features), uint8, and labels, shape (rows,), of `label_dtype`.
        test: the same for the test examples, which are always one shard.
        shards: number of training shards, which have nearly equal length.
    """
    writer = DatasetWriter(folder, shape, classes)
    for split, (pixels, labels), number in (("train", train, shards), ("test", test, 1)):
        for file, span in shard_spans(split, len(labels), number):
            writer.write(split, file, pixels[span], labels[span])
    return writer.finish(name)


class DatasetWriter:
    """Writes a dataset shard by shard into an empty folder.

    Args:
        folder: the folder.
        shape: shape of an example.
        classes: names of the classes.
    """

    def __init__(self, folder: Path, shape: Sequence[int], classes: Sequence[str]) -> None:
        self._folder, self._shape, self._classes = folder, tuple(shape), tuple(classes)
        self._written: dict[str, list[Shard]] = {"train": [], "test": []}
        self._sums = np.zeros(math.prod(shape), dtype=np.int64)

    def write(self, split: str, file: str, pixels: Bytes, labels: Ints) -> None:
        """Write the next shard of a split; see `write_shard` for pixels and labels."""
        if split == "train":
            self._sums += pixels.sum(axis=0, dtype=np.int64)
        written = write_shard(self._folder / file, pixels, labels, self._shape, self._classes)
        self._written[split].append(written)

    def finish(self, name: str, scale: ColumnScale | None = None) -> Manifest:
        """Write the manifest of a dataset of this name.

        Args:
            name: name of the dataset.
            scale: how numbers became pixels; None if they are pixels.
        """
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
    """File name and rows of each shard of a split; the shards have nearly equal length."""
    cuts = [rows * i // shards for i in range(shards + 1)]
    return [
        (f"{split}-{number:05d}-of-{shards:05d}.arrow", slice(low, high))
        for number, (low, high) in enumerate(pairwise(cuts))
    ]


class OpenShard(NamedTuple):
    """A mapped shard, not yet checked.

    Attributes:
        pixels: shape (rows, features), uint8, read-only.
        labels: shape (rows,), of `label_dtype`, read-only.
        path: path of the file.
        identity: identity of the mapped file.
        content: all of its bytes, mapped. The file itself is closed, so that the number of shards
            is not limited by that of open files.
        sha256: checksum that it must have.
    """

    pixels: Bytes
    labels: Ints
    path: Path
    identity: Identity
    content: pa.Buffer
    sha256: str

    def verify(self) -> FileChecksum | None:
        """Check the mapped bytes, unless that has been done.

        Returns:
            the checksum, if other processes may trust it.

        Raises:
            CorruptDataError: it is not what the manifest says.
            StorageError: the machine keeps it from being read.
        """
        if self._found() != self.sha256:
            raise CorruptDataError(
                f"the shard {self.path} is corrupt: its SHA-256 is not the manifest's",
                repair_hint(self.path.parent),
            )
        found = known_checksum(self.identity)
        return (self.identity, found) if found else None

    def _found(self) -> str:
        try:
            before = known_checksum(identity := identity_of(self.path))
            if not before:
                # Read the file, not the mapping: there a failing disk would kill the process.
                identity, before = hash_file(self.path)
            if identity == self.identity:
                return before
        except FileNotFoundError:
            pass
        except OSError as error:
            raise machine_trouble(error, self.path) or CorruptDataError(
                f"the shard {self.path} cannot be read: {error.strerror}",
                repair_hint(self.path.parent),
            ) from None
        # The path has another file by now; the mapped bytes count.
        return hashlib.sha256(self.content).hexdigest()


def open_shard(path: Path, entry: Shard, manifest: Manifest) -> OpenShard:
    """Map one shard; its rows are read when they are used, and not copied.

    Raises:
        DatasetError: the file is missing or has another schema.
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
        batch.validate()  # the buffers must be as long as the rows need
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
    """The only record batch of a shard; Arrow's own `read_all` aborts on some damaged files.

    Its header is checked first: for a compressed batch Arrow would allocate the claimed size.

    Raises:
        ValueError: there is another number of batches, or it is compressed.
    """
    reader = pa.ipc.open_file(content)
    if reader.num_record_batches != 1:
        raise ValueError(f"it has {reader.num_record_batches} record batches, not 1")
    messages = pa.ipc.MessageReader.open_stream(content.slice(len(_MAGIC)))
    message = messages.read_next_message()
    if message.type == "schema":
        message = messages.read_next_message()
    if message.type != "record batch" or _is_compressed(bytes(message.metadata)):
        raise ValueError("it is compressed")
    return pa.ipc.read_record_batch(message, reader.schema)


_MAGIC = b"ARROW1\0\0"
_MESSAGE_HEADER, _BATCH_COMPRESSION = 2, 3
"""Field numbers in Arrow's Message.fbs: the header of a message, the compression of a batch."""


def _is_compressed(metadata: bytes) -> bool:
    """Whether the metadata of a record batch, a flatbuffer, has a field for its compression.

    Raises:
        ValueError: it is malformed.
    """

    def field(table: int, number: int) -> int:
        """The offset of a field of a table; 0 if it has none."""
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
