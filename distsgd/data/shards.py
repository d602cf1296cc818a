"""Shards: Arrow IPC files of rows and labels, which are memory-mapped and not copied."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distsgd.core.arrays import Floats, Ints, Values
from distsgd.data.columns import FLOATS, PIXELS, Columns
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
def _schema(
    shape: tuple[int, ...], classes: tuple[str, ...], values: str = PIXELS, weighted: bool = False
) -> pa.Schema:
    """A fixed-shape tensor of uint8 (channel, row, column), and the label as uint8 or uint16.

    Of floats the tensor is called "features", not "image". Weights are float32.
    """
    floats = values == FLOATS
    tensor = pa.fixed_shape_tensor(pa.float32() if floats else pa.uint8(), list(shape))
    names = json.dumps(list(classes))
    label = pa.from_numpy_dtype(label_dtype(len(classes)))
    weight = [pa.field("weight", pa.float32(), nullable=False)] if weighted else []
    return pa.schema(
        [
            pa.field("features" if floats else "image", tensor, nullable=False),
            pa.field("label", label, nullable=False, metadata={"classes": names}),
            *weight,
        ],
        metadata={"classes": names, "shape": json.dumps(list(shape))},
    )


def label_dtype(classes: int) -> type[np.unsignedinteger[Any]]:
    """The dtype of labels: uint8 for up to 256 classes, else uint16."""
    return np.uint8 if classes <= 256 else np.uint16


def write_shard(
    path: Path,
    rows: Values,
    labels: Ints,
    shape: Sequence[int],
    classes: Sequence[str],
    weights: Floats | None = None,
) -> Shard:
    """Write one shard and return its entry for the manifest.

    Args:
        path: the file.
        rows: pixels or features, shape (rows, features), uint8 or float32.
        labels: shape (rows,), of `label_dtype`.
        shape: shape of an example.
        classes: names of the classes.
        weights: of the rows, shape (rows,); None for none.
    """
    schema = _schema(tuple(shape), tuple(classes), rows.dtype.name, weights is not None)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    tensor = pa.ExtensionArray.from_storage(schema.field(0).type, storage)
    extra = [] if weights is None else [pa.array(weights.astype(np.float32))]
    batch = pa.record_batch([tensor, pa.array(labels), *extra], schema=schema)
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
    train: tuple[Values, Ints],
    test: tuple[Values, Ints],
    shards: int,
    columns: Columns | None = None,
    weights: Floats | None = None,
) -> Manifest:
    """Write a whole dataset into an empty folder, the manifest last.

    Args:
        folder: the folder.
        name: name of the dataset.
        shape: shape of an example.
        classes: names of the classes.
        train: rows, shape (rows, features), uint8 or float32, and labels, shape (rows,), of
            `label_dtype`.
        test: the same for the test examples, which are always one shard.
        shards: number of training shards, which have nearly equal length.
        columns: how columns became features; None for pixels.
        weights: of the training rows, shape (rows,), not all 0; None for none.
    """
    writer = DatasetWriter(folder, shape, classes)
    for split, (rows, labels), number in (("train", train, shards), ("test", test, 1)):
        own = weights if split == "train" else None
        for file, span in shard_spans(split, len(labels), number):
            part = None if own is None else own[span]
            writer.write(split, file, rows[span], labels[span], part)
    return writer.finish(name, columns)


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
        self._sums: Ints | None = None
        self._weights: list[float] = []

    def write(
        self, split: str, file: str, rows: Values, labels: Ints, weights: Floats | None = None
    ) -> None:
        """Write the next shard of a split; see `write_shard`. Only training rows have weights."""
        if split == "train" and rows.dtype == np.uint8:
            sums = np.zeros(rows.shape[1], np.int64) if self._sums is None else self._sums
            self._sums = sums + rows.sum(axis=0, dtype=np.int64)
        if weights is not None:
            self._weights.append(float(weights.sum(dtype=np.float64)))
        path = self._folder / file
        written = write_shard(path, rows, labels, self._shape, self._classes, weights)
        self._written[split].append(written)

    def finish(self, name: str, columns: Columns | None = None) -> Manifest:
        """Write the manifest of a dataset of this name.

        Args:
            name: name of the dataset.
            columns: how columns became features; None for pixels.
        """
        rows = sum(shard.rows for shard in self._written["train"])
        manifest = Manifest(
            name=name,
            shape=self._shape,
            classes=self._classes,
            pixel_sums=() if self._sums is None else tuple(int(n) for n in self._sums),
            train=tuple(self._written["train"]),
            test=tuple(self._written["test"]),
            columns=columns,
            mean_weight=sum(self._weights) / rows if self._weights else None,
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
        rows: pixels or features, shape (rows, features), uint8 or float32, read-only.
        labels: shape (rows,), of `label_dtype`, read-only.
        weights: shape (rows,), float32, read-only; None if it has none.
        path: path of the file.
        identity: identity of the mapped file.
        content: all of its bytes, mapped. The file itself is closed, so that the number of shards
            is not limited by that of open files.
        sha256: checksum that it must have.
    """

    rows: Values
    labels: Ints
    weights: Floats | None
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
    weighted = manifest.mean_weight is not None and entry in manifest.train
    expected = _schema(manifest.shape, manifest.classes, manifest.values, weighted)
    try:
        before = identity_of(path)
        with mappable(path) as opened, pa.memory_map(opened) as file:
            content = file.read_buffer()
        schema = pa.ipc.open_file(content).schema
        if schema != expected:
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
        rows = _rows_of(batch.column(0).storage, entry.rows * manifest.features)
        labels = batch.column(1).to_numpy(zero_copy_only=True)
        weights = batch.column(2).to_numpy(zero_copy_only=True) if weighted else None
        rows = rows.reshape(entry.rows, manifest.features)
        return OpenShard(rows, labels, weights, path, before, content, entry.sha256)
    except FileNotFoundError:
        raise DatasetError(f"the shard {path} is missing", repair_hint(path.parent)) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise machine_trouble(error, path) or CorruptDataError(
            f"the shard {path} is not a whole Arrow file: {error}", repair_hint(path.parent)
        ) from None


def _rows_of(stored: pa.FixedSizeListArray, count: int) -> NDArray[Any]:
    """All numbers of a column of lists, flat. Arrow's own `flatten` loads its compute module,
    which takes a tenth of a second.

    Raises:
        ValueError: rows are missing, or are not where they should be.
    """
    if stored.null_count or stored.offset or len(stored.values) < count:
        raise ValueError("its rows are not whole")
    numbers: NDArray[Any] = stored.values.to_numpy(zero_copy_only=True)
    return numbers[:count]


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
