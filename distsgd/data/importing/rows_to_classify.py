"""Rows of numbers to be classified, out of a file like the one that was imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distsgd.data.importing.csv_file import CsvFile
from distsgd.data.importing.parquet import opened_file
from distsgd.data.importing.source import rows_at_once
from distsgd.data.importing.table_columns import (
    batch_of,
    is_index,
    is_number,
    may_be_numbers,
    refuse_doubles,
    widths_of,
)
from distsgd.data.names import normal, some_of
from distsgd.data.text_files import TEXTS, kind_of
from distsgd.errors import SourceError, UsageError, machine_trouble

__all__ = ["read_numbers"]


def read_numbers(path: Path, names: tuple[str, ...], features: int) -> NDArray[np.float64]:
    """All rows of a CSV or Parquet file.

    Args:
        path: the file; columns that the model does not know are passed over.
        names: of the model's columns; a file that has no names, or knows none of these, must
            have just as many columns, in their order.
        features: of the model.

    Returns:
        shape (rows, features).

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
            raise SourceError(f"{part.rejected[0].where}: {part.rejected[0].why}", "Mend that row")
        found.append(part.values)
    if not found:
        raise UsageError(f"{path} has no rows", "Give a file that has")
    return np.concatenate(found)


def _refuse_words(columns: list[pa.Array], names: list[str], path: Path) -> None:
    for column, name in zip(columns, names, strict=True):
        if not may_be_numbers(column.type):
            raise UsageError(
                f"column '{name}' of {path} is not of numbers, but of {column.type}",
                "Give a file with the columns that were imported",
            )


def _batches(
    path: Path, names: tuple[str, ...], features: int
) -> Iterator[tuple[pa.RecordBatch, list[str], bool]]:
    """Rows, where they stand, and whether their columns have names."""
    if kind_of(path) in TEXTS:
        lines = CsvFile(path, known=names)
        for batch, where, bad in lines.batches():
            if bad:
                raise SourceError(f"{bad[0].where}: {bad[0].why}", "Mend that row")
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
            f"{path} is no Parquet file that can be read: {error}"
        ) from None


def _chosen(batch: pa.RecordBatch, names: tuple[str, ...], features: int, path: Path) -> list[str]:
    """The columns of the features, by their names, or by their order if it knows none of these."""
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
