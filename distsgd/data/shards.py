"""Shards: Arrow IPC files of images and labels, memory-mapped and read without copying."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from distsgd.core.arrays import Bytes
from distsgd.data.manifest import MANIFEST, Manifest, Shard
from distsgd.errors import CorruptDataError, DatasetError

__all__ = ["checksum", "open_shard", "write_dataset", "write_shard"]


def _schema(shape: Sequence[int], classes: Sequence[str]) -> pa.Schema:
    """Image as a fixed-shape tensor of uint8 (channel, row, column), label as uint8."""
    names = json.dumps(list(classes))
    return pa.schema(
        [
            pa.field("image", pa.fixed_shape_tensor(pa.uint8(), list(shape)), nullable=False),
            pa.field("label", pa.uint8(), nullable=False, metadata={"classes": names}),
        ],
        metadata={"classes": names, "shape": json.dumps(list(shape))},
    )


def write_shard(
    path: Path, pixels: Bytes, labels: Bytes, shape: Sequence[int], classes: Sequence[str]
) -> Shard:
    """Write one shard and return its entry for the manifest.

    Args:
        pixels: shape (rows, features).
        labels: shape (rows,).
    """
    schema = _schema(shape, classes)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), pixels.shape[1])
    images = pa.ExtensionArray.from_storage(schema.field("image").type, storage)
    batch = pa.record_batch([images, pa.array(labels)], schema=schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)
    return Shard(path.name, len(labels), path.stat().st_size, checksum(path))


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_dataset(
    folder: Path,
    *,
    name: str,
    shape: Sequence[int],
    classes: Sequence[str],
    train: tuple[Bytes, Bytes],
    test: tuple[Bytes, Bytes],
    shards: int,
) -> Manifest:
    """Write a whole dataset into an empty folder, the manifest last.

    Args:
        train: pixels, shape (rows, features), and labels, shape (rows,).
        test: likewise; always one shard.
        shards: training shards, of nearly equal length.
    """

    def write(split: str, number: int, of: int, pixels: Bytes, labels: Bytes) -> Shard:
        file = f"{split}-{number:05d}-of-{of:05d}.arrow"
        return write_shard(folder / file, pixels, labels, shape, classes)

    cuts = [len(train[1]) * i // shards for i in range(shards + 1)]
    spans = [slice(low, high) for low, high in pairwise(cuts)]
    manifest = Manifest(
        name=name,
        shape=tuple(shape),
        classes=tuple(classes),
        pixel_sums=tuple(int(n) for n in train[0].sum(axis=0, dtype=np.int64)),
        train=tuple(
            write("train", i, shards, train[0][span], train[1][span])
            for i, span in enumerate(spans)
        ),
        test=(write("test", 0, 1, *test),),
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def open_shard(path: Path, entry: Shard, manifest: Manifest) -> tuple[Bytes, Bytes]:
    """Map one shard; nothing is read before it is used, nothing is copied.

    Returns:
        pixels, shape (rows, features), and labels, shape (rows,), both read-only.

    Raises:
        DatasetError: the file is missing or of another schema.
        CorruptDataError: it is not a whole Arrow file.
    """
    mend = "Check it with `distsgd data verify`, mend it with `distsgd data fetch --force`"
    try:
        batch = _map_batch(path)
        if batch.schema != _schema(manifest.shape, manifest.classes):
            raise DatasetError(
                f"the shard {path} has another schema than its dataset: {batch.schema.names}", mend
            )
        if len(batch) != entry.rows:
            raise CorruptDataError(
                f"the shard {path} has {len(batch)} rows, not {entry.rows}", mend
            )
        batch.validate()  # that its buffers are as long as its rows need
        pixels = batch.column("image").storage.flatten().to_numpy(zero_copy_only=True)
        labels = batch.column("label").to_numpy(zero_copy_only=True)
        return pixels.reshape(entry.rows, manifest.features), labels
    except FileNotFoundError:
        raise DatasetError(f"the shard {path} is missing", mend) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptDataError(f"the shard {path} is not a whole Arrow file: {error}", mend) from (
            None
        )


def _map_batch(path: Path) -> pa.RecordBatch:
    """The one record batch of a shard; Arrow itself aborts on some damaged ones in `read_all`."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    if reader.num_record_batches != 1:
        raise ValueError(f"it has {reader.num_record_batches} parts, not 1")
    return reader.get_batch(0)
