"""Rows of files that are to be classified, a batch at a time; what cannot be used is listed."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distsgd.core.arrays import Values
from distsgd.data.columns import Columns
from distsgd.data.importing.csv_file import CsvFile
from distsgd.data.importing.npz import rows_of_npz
from distsgd.data.importing.parquet import opened_file
from distsgd.data.importing.source import Rejected, rows_at_once
from distsgd.data.importing.table_columns import (
    batch_of,
    is_index,
    is_number,
    is_words,
    may_be_numbers,
    refuse_doubles,
    widths_of,
)
from distsgd.data.text_files import TEXTS, kind_of, normal, some_of
from distsgd.errors import SourceError, UsageError, machine_trouble

__all__ = ["STDIN", "Given", "GivenRows"]

STDIN = "-"
"""The name of standard input, which is read as CSV."""

_IMAGES_AT_ONCE = 64

_PIXELS = Columns(names=(), low=(0.0,), high=(255.0,))


@dataclass(frozen=True, eq=False)
class Given:
    """Some of the rows.

    Attributes:
        rows: as the model takes them, shape (rows, features), uint8 or float32.
        where: file and place of each.
        rejected: rows that cannot be used.
    """

    rows: Values
    where: list[str]
    rejected: list[Rejected] = field(default_factory=list)


class GivenRows:
    """Reads files for a model: images, or CSV, Parquet and NPZ with the columns of the model.

    Args:
        shape: shape of the model's examples.
        columns: how columns became its features; None for pixels.
        strict: whether the first row that cannot be used is an error.

    Attributes:
        unknown: column -> number of its words that the model does not know.
    """

    def __init__(
        self, shape: tuple[int, ...], columns: Columns | None, strict: bool = False
    ) -> None:
        self._strict = strict
        self._shape, self._columns = shape, columns or _PIXELS
        self._named = self._columns.names
        shared = len(self._columns.low) == 1
        self._width = prod(shape) if shared else len(self._columns.low)
        self.unknown: Counter[str] = Counter()
        self._codes = {
            place: _KnownWords(self._columns, place, self.unknown)
            for place, words in enumerate(self._columns.words)
            if words
        }

    def batches(self, files: Sequence[Path]) -> Iterator[Given]:
        """The rows of all files, in order.

        Raises:
            UsageError: a file is missing, of another kind, or has other columns.
            SourceError: it cannot be read to its end, or a row cannot be used.
        """
        for given in self._batches(files):
            if given.rejected and self._strict:
                first = given.rejected[0]
                raise SourceError(f"{first.where}: {first.why}", "Correct that row")
            yield given

    def _batches(self, files: Sequence[Path]) -> Iterator[Given]:
        images: list[Path] = []
        for file in files:
            if len(self._shape) == 3 and kind_of(file) != ".npz":
                images.append(file)
                if len(images) == _IMAGES_AT_ONCE:
                    yield self._of_images(images)
                    images = []
                continue
            if images:
                yield self._of_images(images)
                images = []
            yield from self._of_file(file)
        if images:
            yield self._of_images(images)

    def _of_images(self, files: list[Path]) -> Given:
        from distsgd.data.importing.images import read_image  # not before a training: Pillow

        rows, where, rejected = [], [], []
        for file in files:
            try:
                rows.append(read_image(file, self._shape))
                where.append(str(file))
            except UsageError as error:
                if self._strict:
                    raise
                why = error.problem.removeprefix(f"{file} ").removesuffix(f" {file}")
                rejected.append(Rejected(str(file), why))
        return Given(np.stack(rows) if rows else self._none(), where, rejected)

    def _none(self) -> Values:
        return np.empty((0, prod(self._shape)), self._columns.values)

    def _of_file(self, file: Path) -> Iterator[Given]:
        if str(file) == STDIN:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / "stdin"
                with copy.open("wb") as out:
                    shutil.copyfileobj(sys.stdin.buffer, out)
                yield from self._of_table(copy, "stdin", ".csv")
            return
        kind = kind_of(file)
        if kind not in (*TEXTS, ".parquet", ".npz"):
            raise UsageError(
                f"{file} is neither .csv, .parquet nor .npz, and the model takes rows of "
                f"{self._width} numbers",
                "Give a file with the columns that were imported",
            )
        if not file.is_file():
            raise UsageError(f"there is no file {file}", "Check the path")
        if kind == ".npz":
            yield from self._of_arrays(file)
        else:
            yield from self._of_table(file, str(file), kind)

    def _of_arrays(self, file: Path) -> Iterator[Given]:
        row = 0
        for part in rows_of_npz(file, self._shape, self._width):
            numbers = part.astype(np.float64)
            why = [""] * len(numbers)
            self._note(numbers, why)
            where = [f"{file} row {row + place}" for place in range(1, len(why) + 1)]
            row += len(why)
            yield self._given(numbers, where, why)

    def _note(self, numbers: NDArray[np.float64], why: list[str]) -> None:
        """Note in ``why`` the rows of numbers that cannot be used."""
        missing = np.isnan(numbers) if self._columns.fill else np.False_
        for row in np.flatnonzero(~(np.isfinite(numbers) | missing).all(axis=1)):
            why[row] = "it has a number that is not finite"
        if self._columns is _PIXELS:
            wrong = (numbers < 0) | (numbers > 255) | (numbers % 1 != 0)
            for row in np.flatnonzero(wrong.any(axis=1)):
                why[row] = why[row] or "it has a number that is no pixel, a whole one up to 255"

    def _given(self, numbers: NDArray[np.float64], where: list[str], why: list[str]) -> Given:
        kept = np.array([not reason for reason in why], dtype=np.bool_)
        return Given(
            self._columns.rows(numbers[kept]),
            [at for at, reason in zip(where, why, strict=True) if not reason],
            [Rejected(at, reason) for at, reason in zip(where, why, strict=True) if reason],
        )

    def _of_table(self, file: Path, called: str, kind: str) -> Iterator[Given]:
        """Rows of a CSV or Parquet file, whose columns are checked at the first batch."""
        chosen: list[str] | None = None
        for batch, where, bad, named in self._tables(file, kind):
            if chosen is None:
                chosen = self._chosen(batch, self._named if named else (), called, kind)
            columns = [batch.column(name) for name in chosen]
            self._refuse_words(columns, chosen, called)
            widths = widths_of(columns)
            if sum(widths) != self._width:
                raise UsageError(
                    f"{called} has {sum(widths)} numbers a row, and the model takes {self._width}",
                    "Give a file with the columns that were imported",
                )
            found = batch_of(
                columns, chosen, widths, [0] * len(batch), where, self._codes,
                "mean" if self._columns.fill else "reject",
            )  # fmt: skip
            lost = {rejected.where for rejected in found.rejected}
            kept = [f"{called} {at}" for at in where if at not in lost]
            rejected = [
                Rejected(f"{called} {one.where}", one.why) for one in (*found.rejected, *bad)
            ]
            why = [""] * len(kept)
            if self._columns is _PIXELS:
                self._note(found.values, why)
            given = self._given(found.values, kept, why)
            yield Given(given.rows, given.where, [*rejected, *given.rejected])
        if chosen is None:
            raise UsageError(f"{called} has no rows", "Give a file that has")

    def _tables(
        self, file: Path, kind: str
    ) -> Iterator[tuple[pa.RecordBatch, list[str], list[Rejected], bool]]:
        """Batches, the place of each row, lines that are no rows, and whether columns have names.

        Rows are counted from 1.
        """
        if kind in TEXTS:
            lines = CsvFile(file, known=self._named)
            name = f"{file.name} "
            for batch, where, bad in lines.batches():
                places = [at.removeprefix(name) for at in where]
                wrong = [Rejected(one.where.removeprefix(name), one.why) for one in bad]
                yield batch.drop_columns([*lines.empty]), places, wrong, lines.named
            return
        number = 0
        try:
            opened = pq.ParquetFile(opened_file(file))
            refuse_doubles(opened.schema_arrow.names, str(file))
            for batch in opened.iter_batches(rows_at_once(8 * self._width)):
                where = [f"row {number + row}" for row in range(1, len(batch) + 1)]
                yield batch, where, [], True
                number += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise machine_trouble(error, file) or SourceError(
                f"{file} is not a readable Parquet file: {error}"
            ) from None

    def _refuse_words(self, columns: list[pa.Array], names: list[str], called: str) -> None:
        for place, (column, name) in enumerate(zip(columns, names, strict=True)):
            if place in self._codes:
                usable = is_words(column.type) or is_number(column.type)
            else:
                usable = may_be_numbers(column.type)
            if not usable:
                raise UsageError(
                    f"column '{name}' of {called} holds {column.type}, not numbers",
                    "Give a file with the columns that were imported",
                )

    def _chosen(
        self, batch: pa.RecordBatch, names: tuple[str, ...], called: str, kind: str
    ) -> list[str]:
        """The columns of the model: by name, or by order if the file has none of these names."""
        there = {normal(name): name for name in batch.schema.names}
        missing = [name for name in names if normal(name) not in there]
        if names and not missing:
            return [there[normal(name)] for name in names]
        words = bool(self._codes)
        usable = [
            field.name
            for place, field in enumerate(batch.schema)
            if (kind in TEXTS or is_number(field.type) or (words and is_words(field.type)))
            and not is_index(place, field.name)
        ]
        if names and (len(missing) < len(names) or len(usable) != self._width):
            raise UsageError(
                f"{called} has no column {some_of(list(map(repr, missing)))}",
                f"The model takes {some_of(names)}; or give {self._width} columns in that order, "
                "without names",
            )
        return usable


class _KnownWords:
    """Gives the words of a column the places that the model knows, and counts the others."""

    def __init__(self, columns: Columns, place: int, unknown: Mapping[str, int]) -> None:
        self._columns, self._place = columns, place
        self._name = columns.names[place] if columns.names else str(place + 1)
        self._unknown: Any = unknown

    def codes(self, texts: Sequence[str | None]) -> NDArray[np.float64]:
        """See `distsgd.data.importing.table_columns.Codes`."""
        found = self._columns.codes(self._place, ["" if text is None else text for text in texts])
        missing = np.array([text is None for text in texts], dtype=np.bool_)
        if count := int(((found < 0) & ~missing).sum()):
            self._unknown[self._name] += count
        found[missing] = np.nan
        return found
