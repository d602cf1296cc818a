"""CSV: columns of numbers and one of labels, with or without a line of names."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc

from distsgd.data.sources.source import Batch, Rejected, Source, Wishes
from distsgd.data.sources.table_columns import batch_of, label_column
from distsgd.errors import SourceError, UsageError

__all__ = ["CsvFile", "open_csv"]

_BLOCK = 1 << 20
"""Bytes that are parsed at once."""


def open_csv(train: Path, test: Path | None, wishes: Wishes) -> Source:
    """Rows of a CSV file; its first line has names if one of its fields is no number.

    Raises:
        SourceError: it cannot be read, or the test file has other columns.
        UsageError: it is not clear which column is what.
    """
    file = CsvFile(train)
    label = label_column(file.names, wishes, str(train))
    features = [name for name in file.names if name != label and name not in wishes.drop]
    if not features:
        raise UsageError(f"{train} has no column beside the label", "Check the file")
    _refuse_words(file, features)
    other = CsvFile(test) if test else None
    if other is not None and other.names != file.names:
        raise SourceError(f"{test} has other columns than {train}", "Give one with the same")

    def read(opened: CsvFile) -> Iterator[Batch]:
        for batch, where, bad in opened.batches():
            columns = [batch.column(name) for name in features]
            labels = [_as_label(text) for text in batch.column(label).to_pylist()]
            found = batch_of(columns, features, [1] * len(features), labels, where)
            yield Batch(found.values, found.labels, [*found.rejected, *bad])

    return Source(
        shape=(len(features),),
        names=tuple(features),
        train=lambda: read(file),
        test=(lambda: read(other)) if other else None,
    )


def _as_label(text: str | None) -> object:
    """A label that is written as a whole number is one."""
    text = (text or "").strip()
    try:
        number = float(text)
        return int(number) if number.is_integer() else text
    except (ValueError, OverflowError):
        return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class CsvFile:
    """A CSV file whose fields are read as text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bad: list[Rejected] = []
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                line = file.readline(_BLOCK)
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"{path} is no CSV file that can be read: {error}") from None
        self._delimiter = max(",;\t", key=line.count)
        first = [name.strip() for name in next(csv.reader([line], delimiter=self._delimiter), [])]
        if not first:
            raise SourceError(f"{path} is empty, or begins with an empty line", "Check the file")
        self._named = not any(_is_number(name) for name in first)
        self.names = first if self._named else [f"f{i}" for i in range(len(first))]
        if len(set(self.names)) < len(self.names):
            raise SourceError(f"{path} has two columns of the same name", "Rename one")

    def batches(self) -> Iterator[tuple[pa.RecordBatch, list[str], list[Rejected]]]:
        """Rows, where they stand, and lines that have too few or too many fields."""
        row = 1
        try:
            with self._open() as reader:
                for batch in reader:
                    bad, self._bad = self._bad, []
                    where = [f"{self.path.name} row {row + i}" for i in range(len(batch))]
                    row += len(batch)
                    yield batch, where, bad
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{self.path} cannot be read on: {error}", "Check it") from None

    def _open(self) -> Any:
        def keep(line: pc.InvalidRow) -> str:
            self._bad.append(Rejected(
                f"{self.path.name}: {(line.text or '')[:60]}",
                f"it has {line.actual_columns} fields, not {line.expected_columns}",
            ))  # fmt: skip
            return "skip"

        return pc.open_csv(
            self.path,
            read_options=pc.ReadOptions(
                block_size=_BLOCK, use_threads=False,
                column_names=self.names, skip_rows=1 if self._named else 0,
            ),
            parse_options=pc.ParseOptions(
                delimiter=self._delimiter, invalid_row_handler=keep),
            convert_options=pc.ConvertOptions(
                column_types={name: pa.string() for name in self.names}, strings_can_be_null=False
            ),
        )  # fmt: skip


def _refuse_words(file: CsvFile, features: list[str]) -> None:
    """A column whose first fields are all words was not meant as numbers."""
    for batch, _, _ in file.batches():
        for name in features:
            texts = [text.strip() for text in batch.column(name)[:20].to_pylist()]
            if texts and not any(_is_number(text) for text in texts):
                raise UsageError(
                    f"column '{name}' of {file.path} is not of numbers: '{texts[0]}'",
                    f"Leave it out: --drop {name}",
                )
        return
    raise SourceError(f"{file.path} has no rows", "Give a file that has")
