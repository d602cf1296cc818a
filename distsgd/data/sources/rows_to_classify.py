"""Rows of numbers to be classified, out of a file like the one that was imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distsgd.data.sources.csv_file import CsvFile
from distsgd.data.sources.parquet import opened_file
from distsgd.data.sources.source import rows_at_once
from distsgd.data.sources.table_columns import batch_of, is_number, refuse_doubles, widths_of
from distsgd.errors import SourceError, UsageError

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
    if path.suffix.lower() not in (".csv", ".tsv", ".txt", ".parquet"):
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
        widths = widths_of(columns, chosen)
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


def _batches(
    path: Path, names: tuple[str, ...], features: int
) -> Iterator[tuple[pa.RecordBatch, list[str], bool]]:
    """Rows, where they stand, and whether their columns have names."""
    if path.suffix.lower() != ".parquet":
        lines = CsvFile(path, known=names)
        for batch, where, bad in lines.batches():
            if bad:
                raise SourceError(f"{bad[0].where}: {bad[0].why}", "Mend that row")
            yield batch, where, lines.named
        return
    number = 0
    try:
        file = pq.ParquetFile(opened_file(path))
        refuse_doubles(file.schema_arrow.names, str(path))
        for batch in file.iter_batches(rows_at_once(8 * features)):
            yield batch, [f"{path.name} row {number + row}" for row in range(len(batch))], True
            number += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} is no Parquet file that can be read: {error}") from None


def _chosen(batch: pa.RecordBatch, names: tuple[str, ...], features: int, path: Path) -> list[str]:
    """The columns of the features, by their names, or by their order if it knows none of these."""
    there = list(batch.schema.names)
    missing = [name for name in names if name not in there]
    if names and not missing:
        return list(names)
    texts = path.suffix.lower() != ".parquet"
    usable = [name for name in there if texts or is_number(batch.schema.field(name).type)]
    if names and (len(missing) < len(names) or len(usable) != features):
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UsageError(
            f"{path} has no column {', '.join(map(repr, missing[:5]))}{more}",
            f"The model takes {', '.join(names[:20])}; or give {features} columns in that order, "
            "without names",
        )
    return usable
