"""Parquet: columns of numbers, or encoded images as the Hugging Face hub keeps them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distsgd.data.importing.images import Encoded, decode_batch, shape_of_first
from distsgd.data.importing.source import Batch, ImportOptions, Source, WordCodes, rows_at_once
from distsgd.data.importing.table_columns import (
    batch_of,
    column_named,
    feature_columns,
    is_index,
    is_number,
    is_words,
    label_column,
    refuse_doubles,
    refuse_words,
    widths_of,
)
from distsgd.data.text_files import require_file
from distsgd.errors import SourceError, UsageError, machine_trouble
from distsgd.spelling import spelling

__all__ = ["open_parquet", "opened_file"]

_FIRST = 64
"""Rows of numbers that are read before the others; images are read until one can be decoded."""


def open_parquet(train: list[Path], test: list[Path], options: ImportOptions) -> Source:
    """Rows of Parquet files, one file after another.

    Args:
        train: files of the training rows, or of all rows.
        test: files of the test rows; empty if unknown.
        options: which columns are what, and how to read them.

    Raises:
        SourceError: a file cannot be read, or has other columns than the first.
        UsageError: it is not clear which column is what.
    """
    with _errors(train[0]):
        schema = pq.read_schema(opened_file(train[0]))
        refuse_doubles(schema.names, str(train[0]))
        hub = _hub_features(schema)
        label = _label(schema, hub, options, train[0])
        image = _image(schema, hub, options, train[0], label)
        for path in [*train, *test]:
            if pq.read_schema(opened_file(path)).names != schema.names:
                raise SourceError(
                    f"{path} has other columns than {train[0]}", "Import them separately"
                )
        files = [pq.read_metadata(opened_file(path)) for path in [*train, *test]]
        kept = max(map(_row_bytes, files))
        few = rows_at_once(kept) if image else min(_FIRST, rows_at_once(kept))
        columns = [image, label] if image else None
        first = next(_rows_of(train[0], few, label, columns), None)
    if first is None:
        raise SourceError(f"{train[0]} has no rows", "Give a file that has")
    where = str(train[0])
    opened: _Images | _Numbers
    if image:
        opened = _Images(image, label, first, options)
    else:
        opened = _Numbers(schema, label, first, options, where)
    at_once = rows_at_once(max(kept, opened.row_bytes))

    def read(paths: list[Path]) -> Iterator[Batch]:
        for path in paths:
            with _errors(path):
                number = 0
                for batch in _rows_of(path, at_once, label, opened.columns):
                    where = [f"{path.name} row {number + row}" for row in range(len(batch))]
                    number += len(batch)
                    yield opened.read(batch, where)

    return Source(
        shape=opened.shape,
        names=opened.names,
        classes=_classes(hub.get(label, {})),
        train=lambda: read(train),
        test=(lambda: read(test)) if test else None,
        rows=sum(file.num_rows for file in files),
        pixels=image is not None,
        label=label,
        features=opened.features,
        left_out=opened.left_out,
        words=opened.words,
    )


def opened_file(path: Path) -> pa.NativeFile:
    """Open a file for Arrow, which cannot open a name that is not UTF-8 itself.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device or a socket.
    """
    require_file(path)
    return pa.OSFile(os.fsencode(path))


def _rows_of(
    path: Path, at_once: int, label: str, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows of a file; labels stay dictionary-encoded, as many rows may share one long text."""
    file = pq.ParquetFile(opened_file(path), read_dictionary=[label])
    yield from file.iter_batches(at_once, columns=columns)


def _labels(column: pa.Array) -> list[object]:
    """The labels of some rows; equal texts are one object."""
    if not pa.types.is_dictionary(column.type):
        return list(column.to_pylist())
    texts = [*column.dictionary.to_pylist(), None]
    return [texts[-1 if place is None else place] for place in column.indices.to_pylist()]


def _row_bytes(file: pq.FileMetaData) -> int:
    """Uncompressed bytes of a row of a file."""
    groups = [file.row_group(number) for number in range(file.num_row_groups)]
    return max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)


def _classes(column: dict[str, Any]) -> tuple[str, ...] | None:
    """Names of the classes, if the metadata of the hub has some for a column."""
    names = column.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names) or None


class _errors:
    """Turns errors of Arrow into ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        if isinstance(error, pa.ArrowException | OSError | UnicodeDecodeError):
            raise machine_trouble(error, self._path) or SourceError(
                f"{self._path} is not a readable Parquet file: {error}", "Check the file"
            ) from None


def _hub_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """The column metadata that files of the Hugging Face hub have; empty for others."""
    with suppress(KeyError, TypeError, ValueError, RecursionError):
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {str(name): kind for name, kind in found.items() if isinstance(kind, dict)}
    return {}


def _label(schema: pa.Schema, hub: dict[str, Any], options: ImportOptions, path: Path) -> str:
    classes = [name for name in schema.names if hub.get(name, {}).get("_type") == "ClassLabel"]
    if options.label is None and len(classes) == 1:
        return str(classes[0])
    if options.label is None and len(classes) > 1:
        raise UsageError(
            f"{path} has several columns of classes",
            f"Choose one with {spelling().setting('label')}: {', '.join(classes)}",
        )
    columns = set(schema.names) - _index_columns(schema)
    words = [
        field.name for field in schema if field.name in columns and not is_number(field.type)
    ]  # fmt: skip
    return label_column(schema.names, options, str(path), words[-1] if words else None)


def _index_columns(schema: pa.Schema) -> set[str]:
    """Columns that are the index of a pandas table, by the metadata of the file or by name."""
    found = {name for place, name in enumerate(schema.names) if is_index(place, name)}
    with suppress(KeyError, TypeError, ValueError):
        index = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        found.update(name for name in index if isinstance(name, str))
    return found & set(schema.names)


def _image(
    schema: pa.Schema, hub: dict[str, Any], options: ImportOptions, path: Path, label: str
) -> str | None:
    """The column of encoded images; None if the features are numbers."""
    if options.image is not None:
        return column_named(options.image, schema.names, "image", str(path))
    found = [
        field.name
        for field in schema
        if field.name not in (label, *options.drop)
        and (hub.get(field.name, {}).get("_type") == "Image" or _holds_bytes(field.type))
    ]
    if len(found) > 1:
        raise UsageError(
            f"{path} has several columns of images",
            f"Choose one with {spelling().setting('image')}: {', '.join(found)}",
        )
    return str(found[0]) if found else None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


class _Images:
    """Reads a column of encoded images."""

    names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    words: Mapping[int, WordCodes] = MappingProxyType({})

    def __init__(
        self, image: str, label: str, first: pa.RecordBatch, options: ImportOptions
    ) -> None:
        self.columns = [image, label]
        self._resize = options.size is not None
        shape = shape_of_first(_encoded(first.column(image)), options.size)
        if shape is None:
            raise SourceError(f"no image in column '{image}' can be read", "Check the file")
        self.shape: tuple[int, ...] = shape
        self.row_bytes = math.prod(shape)
        self.features: tuple[str, ...] = (f"pixels of {image}",)

    def read(self, batch: pa.RecordBatch, where: list[str]) -> Batch:
        """Decode the images of some rows."""
        images = _encoded(batch.column(self.columns[0]))
        labels = _labels(batch.column(self.columns[1]))
        rows: list[Encoded] = list(zip(where, images, labels, strict=True))
        return decode_batch(rows, self.shape, self._resize)


def _encoded(column: pa.Array) -> list[bytes | None]:
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
    return [item if isinstance(item, bytes) else None for item in column.to_pylist()]


class _Numbers:
    """Reads columns of numbers."""

    def __init__(
        self,
        schema: pa.Schema,
        label: str,
        first: pa.RecordBatch,
        options: ImportOptions,
        where: str,
    ) -> None:
        self._label = label
        index = _index_columns(schema) - {label}
        self.left_out = tuple(name for name in schema.names if name in index)
        names = feature_columns(schema.names, label, index, options, where)
        kinds = {name: schema.field(name).type for name in names}
        words = {name for name, kind in kinds.items() if is_words(kind)}
        refused = {n: str(kind) for n, kind in kinds.items() if not is_number(kind)}
        if options.shape is None:
            refused = {name: kind for name, kind in refused.items() if name not in words}
        refuse_words(refused, where)
        words.update(column_named(name, names, "category", where) for name in options.category)
        self._codes = {place: WordCodes(name) for place, name in enumerate(names) if name in words}
        self._weight = options.weight and column_named(
            options.weight, schema.names, "weight", where
        )
        self._missing = options.missing
        self._features = names
        self.columns = [*names, label, *([self._weight] if self._weight else [])]
        self._widths = widths_of([first.column(name) for name in names])
        self.shape: tuple[int, ...] = (sum(self._widths),)
        self.words = {sum(self._widths[:place]): codes for place, codes in self._codes.items()}
        self.row_bytes = 8 * sum(self._widths)
        plain = set(self._widths) == {1}
        self.names: tuple[str, ...] = tuple(names) if plain else ()
        self.features = tuple(
            name if width == 1 else f"{name} ({width} numbers)"
            for name, width in zip(names, self._widths, strict=True)
        )

    def read(self, batch: pa.RecordBatch, where: list[str]) -> Batch:
        """The numbers of some rows."""
        columns = [batch.column(name) for name in self._features]
        labels = _labels(batch.column(self._label))
        weights = batch.column(self._weight) if self._weight else None
        return batch_of(
            columns, self._features, self._widths, labels, where, self._codes, self._missing,
            weights,
        )  # fmt: skip
