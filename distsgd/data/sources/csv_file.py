"""CSV: columns of numbers and one of labels, with or without a line of names."""

from __future__ import annotations

import csv
import io
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc

from distsgd.data.sources.csv_header import has_names, is_missing, is_number
from distsgd.data.sources.source import Batch, Rejected, Source, Wishes
from distsgd.data.sources.table_columns import batch_of, label_column
from distsgd.errors import SourceError, UsageError

__all__ = ["CsvFile", "open_csv"]

_BLOCK = 1 << 20
"""Bytes that are parsed at once."""

_LOOKED_AT = 1000
"""Rows that tell, with the first line, whether that has names."""

_LET_GO_SECONDS = 5.0

_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]{0,17}))(?:\.0+)?")


def open_csv(train: Path, test: Path | None, wishes: Wishes) -> Source:
    """Rows of a CSV file; `has_names` says whether its first line has names, if the user does not.

    Raises:
        SourceError: it cannot be read, or the test file has other columns.
        UsageError: it is not clear which column is what.
    """
    file = CsvFile(train, wishes.header)
    label = label_column(file.names, wishes, str(train))
    features = [name for name in file.names if name != label and name not in wishes.drop]
    if not features:
        raise UsageError(f"{train} has no column beside the label", "Check the file")
    _refuse_words(file, features)
    header = wishes.header if file.named else False
    other = CsvFile(test, header, file.names) if test else None
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


def _as_label(text: str) -> object:
    """A label that is written as a whole number usually is, is one; None where there is none."""
    text = text.strip()
    if is_missing(text):
        return None
    number = _WHOLE.fullmatch(text)
    return int(number[1]) if number else text


class CsvFile:
    """A CSV file whose fields are read as text.

    Args:
        path: of the file.
        header: whether its first line has names; None to find out.
        known: names of columns: a line that has all of them has names.

    Attributes:
        named: whether its first line has names.
        names: of its columns.
        first: some of its rows.

    Raises:
        SourceError: it cannot be read, or has no rows.
    """

    def __init__(self, path: Path, header: bool | None = None, known: Sequence[str] = ()) -> None:
        self.path = path
        line, self.first, more = self._begin()
        if header is None:
            header = (bool(known) and set(known) <= set(line)) or has_names(line, self.first)
        self.named = header
        self.names = line if header else [f"f{i}" for i in range(len(line))]
        if not header:
            self.first.insert(0, line)
        elif not more:
            raise SourceError(f"{path} has no rows", "Give a file that has")
        if len(set(self.names)) < len(self.names):
            raise SourceError(
                f"{path} has two columns of the same name",
                "Rename one, or say --no-header if the first line has no names",
            )

    def _begin(self) -> tuple[list[str], list[list[str]], bool]:
        """The first line, some rows after it, and whether there are any."""
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                text = file.read(_BLOCK)
            unquoted = re.sub(r'"[^"]*"', "", text).partition("\n")[0]
            self._delimiter = max(",;\t", key=unquoted.count)
            lines = csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter)
            rows = list(islice(lines, _LOOKED_AT + 1))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise SourceError(f"{self.path} is no CSV file that can be read: {error}") from None
        if not rows or not rows[0]:
            raise SourceError(
                f"{self.path} is empty, or begins with an empty line", "Check the file"
            )
        more = any(rows[1:])
        if len(text) == _BLOCK:
            rows.pop()  # it may have been cut
        if not rows:
            raise SourceError(
                f"the first line of {self.path} is longer than {_BLOCK} characters",
                "Check the file",
            )
        return [name.strip() for name in rows[0]], [row for row in rows[1:] if row], more

    def batches(self) -> Iterator[tuple[pa.RecordBatch, list[str], list[Rejected]]]:
        """Rows, where they stand, and lines that have too few or too many fields."""
        row, bad = 1, deque[tuple[int, Rejected]]()
        try:
            for batch in self._read(bad):
                where: list[str] = []
                between: list[Rejected] = []
                while len(where) < len(batch):
                    if bad and bad[0][0] == row:
                        between.append(bad.popleft()[1])
                    else:
                        where.append(self._where(row))
                    row += 1
                yield batch, where, between
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{self.path} cannot be read on: {error}", "Check it") from None
        if bad:
            none = pa.record_batch([pa.array([], pa.string())] * len(self.names), self.names)
            yield none, [], [rejected for _, rejected in bad]

    def _where(self, row: int) -> str:
        return f"{self.path.name} row {row}"

    def _read(self, bad: deque[tuple[int, Rejected]]) -> Iterator[pa.RecordBatch]:
        """Rows; lines that are none go to ``bad``, before the rows that come after them."""
        names = int(self.named)

        def keep(line: pc.InvalidRow) -> str:
            row = line.number - names
            why = f"it has {line.actual_columns} fields, not {line.expected_columns}"
            bad.append((row, Rejected(self._where(row), f"{why}: {(line.text or '')[:60]}")))
            return "skip"

        # A thread of Arrow's lets go of `keep` after the end, for which it needs Python. If the
        # process ended at that very moment, it would be aborted.
        gone = threading.Event()
        weakref.finalize(keep, gone.set)
        options, reader = self._options(keep), None
        del keep
        try:
            reader = pc.open_csv(self.path, **options)
            yield from reader
        finally:
            options.clear()
            if reader is not None:
                reader.close()
                del reader
            gone.wait(_LET_GO_SECONDS)

    def _options(self, handler: Callable[[pc.InvalidRow], str]) -> dict[str, Any]:
        return {
            "read_options": pc.ReadOptions(
                block_size=_BLOCK, use_threads=False,
                column_names=self.names, skip_rows_after_names=int(self.named),
            ),
            "parse_options": pc.ParseOptions(
                delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=handler),
            "convert_options": pc.ConvertOptions(
                column_types={name: pa.string() for name in self.names}, strings_can_be_null=False
            ),
        }  # fmt: skip


def _refuse_words(file: CsvFile, features: list[str]) -> None:
    """A column whose first fields are all words was not meant as numbers."""
    for place, name in enumerate(file.names):
        texts = [row[place].strip() for row in file.first[:20] if place < len(row)]
        if name in features and texts and not any(map(is_number, texts)):
            raise UsageError(
                f"column '{name}' of {file.path} is not of numbers: '{texts[0]}'",
                f"Leave it out: --drop {name}",
            )
