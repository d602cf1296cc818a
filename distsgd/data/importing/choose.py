"""Open a source of rows by its kind, to import it or to classify its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distsgd.data.columns import FLOATS
from distsgd.data.importing.csv_file import CsvFile, open_csv
from distsgd.data.importing.images import open_image_folder
from distsgd.data.importing.npz import open_npz
from distsgd.data.importing.parquet import open_parquet, opened_file
from distsgd.data.importing.source import ImportOptions, Source, rows_at_once
from distsgd.data.importing.table_columns import (
    batch_of,
    is_index,
    is_number,
    may_be_numbers,
    refuse_doubles,
    widths_of,
)
from distsgd.data.text_files import TEXTS, kind_of, normal, require_file, some_of
from distsgd.errors import SourceError, UsageError, machine_trouble
from distsgd.spelling import spelling

__all__ = ["open_source", "read_numbers"]


_MOST_NUMBERS = 2**24
"""Numbers of a row: those of a colour image of 2,300 x 2,300."""


def open_source(path: Path, test: Path | None, options: ImportOptions) -> Source:
    """Open a file or folder according to its kind.

    Args:
        path: a .parquet, .csv or .npz file; a folder of Parquet files (train-*.parquet,
            test-*.parquet) or of images by class.
        test: a file of the same kind with the test rows.
        options: which columns are what, and how to read them.

    Raises:
        SourceError: it is missing or cannot be read.
        StorageError: the machine keeps it from being read.
        UsageError: it is not clear which column is what.
    """
    for one in (path, test):
        if one is not None and not one.exists():
            raise SourceError(f"there is no file or folder {one}", "Check the path")
    try:
        for one in (path, test):
            if one is not None:
                require_file(one)
        source = _open(path, test, options)
    except OSError as error:
        raise machine_trouble(error, error.filename or path) or SourceError(
            f"{error.filename or path} cannot be read: {error.strerror or error}", "Check it"
        ) from None
    _check_width(path, prod(source.shape))
    if len(source.shape) == 3 or options.shape is not None:
        _refuse_floats(options)
    if options.shape is None:
        return source
    if prod(options.shape) != prod(source.shape):
        raise UsageError(
            f"{spelling().given('shape', options.shape)} does not match "
            f"{prod(source.shape)} numbers a row",
            "Give a shape of as many numbers",
        )
    return replace(source, shape=options.shape, names=())


def _refuse_floats(options: ImportOptions) -> None:
    if options.values == FLOATS:
        raise UsageError(
            f"{spelling().given('values', FLOATS)} does not go with images, which are kept as "
            "pixels",
            "Leave it out",
        )


def _name(argument: str) -> str:
    return spelling().setting(argument)


def _check_width(path: Path, width: int) -> None:
    if not width:
        raise SourceError(f"the rows of {path} have no numbers", "Check the file")
    if width > _MOST_NUMBERS:
        raise UsageError(
            f"the rows of {path} would have {width} numbers, and at most {_MOST_NUMBERS} are "
            "supported",
            f"Give shorter ones; for images, a smaller {spelling().setting('size')}",
        )


def _open(path: Path, test: Path | None, options: ImportOptions) -> Source:
    if path.is_dir():
        return _open_folder(path, test, options)
    if test is not None and test.is_dir():
        raise SourceError(f"{_name('test')} {test} is a folder, and {path} a file", "Give a file")
    kind = kind_of(path)
    if kind == ".parquet":
        return open_parquet([path], [test] if test else [], options)
    if kind in TEXTS:
        return open_csv(path, test, options)
    if kind == ".npz":
        if test is not None:
            raise UsageError(
                f"{_name('test')} does not go with an NPZ file",
                "Put all arrays into one file: x_test, y_test",
            )
        _refuse_columns(options, "an NPZ file")
        return open_npz(path, options)
    raise SourceError(
        f"{path} is neither .parquet, .csv nor .npz, nor a folder", "Give one of these"
    )


def _refuse_columns(options: ImportOptions, what: str) -> None:
    for name in ("drop", "category", "weight"):
        if getattr(options, name):
            raise UsageError(
                f"{_name(name)} does not go with {what}, which has no named columns", "Leave it out"
            )


def _open_folder(folder: Path, test: Path | None, options: ImportOptions) -> Source:
    files = sorted(folder.glob("*.parquet"))
    if not files:
        if test is not None:
            raise UsageError(
                f"{_name('test')} does not go with a folder of images",
                "Put the images into train/ and test/ of one folder",
            )
        _refuse_columns(options, "a folder of images")
        return open_image_folder(folder, options)
    tests = sorted(test.glob("*.parquet")) if test and test.is_dir() else [test] if test else []
    if not tests:
        tests = [path for path in files if path.name.startswith("test")]
    files = [path for path in files if path not in tests]
    train = [path for path in files if path.name.startswith("train")]
    if not (train or files):
        raise SourceError(f"{folder} has no Parquet file of training rows", "Check the folder")
    return open_parquet(train or files, tests, options)


def read_numbers(path: Path, names: tuple[str, ...], features: int) -> NDArray[np.float64]:
    """All rows of a CSV or Parquet file.

    Args:
        path: the file; columns that the model does not have are ignored.
        names: names of the model's columns; a file without names, or with none of these, must
            have exactly as many columns, in their order.
        features: number of features of the model.

    Returns:
        shape (rows, features), float64.

    Raises:
        UsageError: the file is missing, of another kind, or has other columns.
        SourceError: a row lacks a number; names it.
    """
    if kind_of(path) not in (*TEXTS, ".parquet"):
        raise UsageError(
            f"{path} is neither .csv nor .parquet, and the model takes rows of {features} numbers",
            "Give a file with the columns that were imported",
        )
    if not path.is_file():
        raise UsageError(f"there is no file {path}", "Check the path")
    found: list[NDArray[np.float64]] = []
    for batch, where, named in _batches(path, names, features):
        chosen = _chosen(batch, names if named else (), features, path)
        columns = [batch.column(name) for name in chosen]
        _refuse_words(columns, chosen, path)
        widths = widths_of(columns)
        if sum(widths) != features:
            raise UsageError(
                f"{path} has {sum(widths)} numbers a row, and the model takes {features}",
                "Give a file with the columns that were imported",
            )
        part = batch_of(columns, chosen, widths, [0] * len(batch), where)
        if part.rejected:
            raise SourceError(
                f"{part.rejected[0].where}: {part.rejected[0].why}", "Correct that row"
            )
        found.append(part.values)
    if not found:
        raise UsageError(f"{path} has no rows", "Give a file that has")
    return np.concatenate(found)


def _refuse_words(columns: list[pa.Array], names: list[str], path: Path) -> None:
    for column, name in zip(columns, names, strict=True):
        if not may_be_numbers(column.type):
            raise UsageError(
                f"column '{name}' of {path} holds {column.type}, not numbers",
                "Give a file with the columns that were imported",
            )


def _batches(
    path: Path, names: tuple[str, ...], features: int
) -> Iterator[tuple[pa.RecordBatch, list[str], bool]]:
    """Batches of rows, the place of each row, and whether the columns have names."""
    if kind_of(path) in TEXTS:
        lines = CsvFile(path, known=names)
        for batch, where, bad in lines.batches():
            if bad:
                raise SourceError(f"{bad[0].where}: {bad[0].why}", "Correct that row")
            yield batch.drop_columns([*lines.empty]), where, lines.named
        return
    number = 0
    try:
        file = pq.ParquetFile(opened_file(path))
        refuse_doubles(file.schema_arrow.names, str(path))
        for batch in file.iter_batches(rows_at_once(8 * features)):
            yield batch, [f"{path.name} row {number + row}" for row in range(len(batch))], True
            number += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise machine_trouble(error, path) or SourceError(
            f"{path} is not a readable Parquet file: {error}"
        ) from None


def _chosen(batch: pa.RecordBatch, names: tuple[str, ...], features: int, path: Path) -> list[str]:
    """The columns of the features: by name, or by order if the file has none of these names."""
    there = {normal(name): name for name in batch.schema.names}
    missing = [name for name in names if normal(name) not in there]
    if names and not missing:
        return [there[normal(name)] for name in names]
    texts = kind_of(path) in TEXTS
    usable = [
        name
        for place, name in enumerate(batch.schema.names)
        if (texts or is_number(batch.schema.field(name).type)) and not is_index(place, name)
    ]
    if names and (len(missing) < len(names) or len(usable) != features):
        raise UsageError(
            f"{path} has no column {some_of(list(map(repr, missing)))}",
            f"The model takes {some_of(names)}; or give {features} columns in that order, "
            "without names",
        )
    return usable
