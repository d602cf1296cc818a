"""CSV: columns of numbers and one of labels, with or without a line of column names."""

from __future__ import annotations

import csv
import io
import re
import threading
import weakref
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.csv as pc

from distsgd.data.importing.source import Batch, ImportOptions, Rejected, Source, WordCodes
from distsgd.data.importing.table_columns import (
    MISSING_NUMBERS,
    MISSING_WORDS,
    batch_of,
    column_named,
    feature_columns,
    is_index,
    label_column,
    refuse_words,
    word_of,
)
from distsgd.data.text_files import encoding_of, normal, open_bytes
from distsgd.errors import DistsgdError, SourceError, UsageError, machine_trouble
from distsgd.spelling import spelling

__all__ = ["CsvFile", "has_names", "open_csv"]


_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?")

_ENOUGH_ROWS, _ENOUGH_NUMBERS = 50, 5
_WORDS = 20
"""Fields that decide whether a column holds words."""


def is_missing(text: str) -> bool:
    """Whether a field is empty or stands for a missing value."""
    return text.strip().lower() in MISSING_WORDS


def is_number(text: str) -> bool:
    """Whether a field is a number, such as NaN."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def has_names(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a first line has column names, judging by it and some of the rows that follow.

    It does if none of its fields is a number; if one is a word above a column of numbers; if its
    numbers count up from 0 or 1, as programs name columns; or if the columns below its words hold
    classes, and its words are none of these.

    Args:
        first: fields of the first line.
        rows: fields of some of the rows after it.
    """
    numbers = [field for field in first if is_number(field)]
    if not numbers:
        return True
    below = {
        word: [row[i] for row in rows if i < len(row) and not _is_missing_number(row[i])]
        for i, word in enumerate(first)
        if not is_number(word) and not _is_missing_number(word)
    }
    if any(column and all(map(is_number, column)) for column in below.values()):
        return True
    if _count_up(numbers):
        new = all(word not in column for word, column in below.items())
        return bool(rows) and new if below else len(numbers) >= _ENOUGH_NUMBERS
    return any(_is_none_of(word, column) for word, column in below.items())


def _is_missing_number(text: str) -> bool:
    return text.strip().lower() in MISSING_NUMBERS


def _count_up(numbers: list[str]) -> bool:
    return numbers in ([str(start + i) for i in range(len(numbers))] for start in (0, 1))


def _is_none_of(word: str, column: list[str]) -> bool:
    """Whether all words of a column recur in it, but this one never does."""
    counts = Counter(column)
    return len(column) >= _ENOUGH_ROWS and word not in counts and min(counts.values()) > 1


_BLOCK = 1 << 20
"""Bytes, or characters, that are parsed at once."""

_LOOKED_AT = 1000
"""Rows that are compared with the first line."""

_RELEASE_SECONDS = 5.0

_COMMA = re.compile(r"\s*([+-]?[0-9]*),([0-9]+(?:[eE][+-]?[0-9]+)?)\s*")
_POINT = re.compile(r"\s*[+-]?[0-9]*\.[0-9]+(?:[eE][+-]?[0-9]+)?\s*")
_AS_POINT = r"\1.\2"
"""A number with a decimal comma, one with a decimal point, and the replacement of the former."""

_THOUSANDS = re.compile(r"\s*[+-]?[0-9]{1,3},[0-9]{3}\s*")


def open_csv(train: Path, test: Path | None, options: ImportOptions) -> Source:
    """Open a CSV file; `has_names` decides about its first line, unless the options do.

    Args:
        train: file of the training rows, or of all rows.
        test: file of the test rows; None if unknown.
        options: which columns are what, and how to read them.

    Raises:
        SourceError: it cannot be read, or the test file has other columns.
        UsageError: it is not clear which column is what.
    """
    file, where = CsvFile(train, options.header, encoding=options.encoding), str(train)
    columns = [name for name in file.names if name not in file.empty]
    words = file.words()
    label = label_column(columns, options, where, next(reversed(words), None))
    index = [name for name in file.index if name != label]
    features = feature_columns(columns, label, index, options, where)
    unclear = {name: _unclear(words.get(name, "")) for name in features}
    refuse_words({name: what for name, what in unclear.items() if what}, where)
    chosen = [column_named(name, columns, "category", where) for name in options.category]
    codes = {
        place: WordCodes(name)
        for place, name in enumerate(features)
        if name in words or name in chosen
    }
    if options.shape is not None:
        refuse_words({name: "words" for name in features if name in words}, where)
    weight = options.weight and column_named(options.weight, columns, "weight", where)
    header = options.header if file.named else False
    other = CsvFile(test, header, file.names, options.encoding) if test else None
    if other is not None and other.names != file.names:
        raise SourceError(f"{test} has other columns than {train}", "Give one with the same")

    def read(opened: CsvFile) -> Iterator[Batch]:
        for batch, where, bad in opened.batches():
            columns = [batch.column(name) for name in features]
            labels = [_as_label(text) for text in batch.column(label).to_pylist()]
            found = batch_of(
                columns, features, [1] * len(features), labels, where, codes, options.missing,
                batch.column(weight) if weight else None,
            )  # fmt: skip
            yield replace(found, rejected=[*found.rejected, *bad])

    return Source(
        shape=(len(features),),
        names=tuple(features),
        train=lambda: read(file),
        test=(lambda: read(other)) if other else None,
        label=label,
        features=tuple(features),
        left_out=tuple(index),
        notices=("commas in numbers are read as decimal commas",) if file.decimal_commas else (),
        words=codes,
    )


def _unclear(word: str) -> str:
    """What a word is, if it is no name of a category; "" if it is one."""
    if _DATE.fullmatch(word):
        return f"dates as '{word}'"
    return f"words as '{word}'" if _COMMA.fullmatch(word) else ""


def _as_label(text: str) -> object:
    """A label as a whole number, if it is written as one; as text; or None if it is missing."""
    text = text.strip()
    if is_missing(text):
        return None
    return int(text) if (text := word_of(text)) and _INTEGER.fullmatch(text) else text


class CsvFile:
    """A CSV file whose fields are read as text.

    Args:
        path: path of the file.
        header: whether its first line has column names; None to detect it.
        known: names of columns: a line that has all of them has names.
        encoding: encoding; None for that of its byte order mark, or else UTF-8.

    Attributes:
        path: as given.
        named: whether its first line has names.
        names: names of the columns; a column without one is called "Unnamed: " and its place.
        index: columns that are the index of a pandas table, or names of rows as R writes them.
        decimal_commas: whether numbers have decimal commas, which are read as points.
        empty: empty columns without a name, which commas at the ends of lines make.
        first: some of its rows.

    Raises:
        SourceError: it cannot be read, or has no rows.
        UsageError: there is no such encoding.
    """

    def __init__(
        self,
        path: Path,
        header: bool | None = None,
        known: Sequence[str] = (),
        encoding: str | None = None,
    ) -> None:
        self.path = path
        line, self.first, more = self._begin(encoding)
        if header is None:
            unlike = {normal(name) for name in known} - {*map(normal, _filled(line))}
            header = (bool(known) and not unlike) or has_names(line, self.first)
        self.named = header
        if not header:
            self.first.insert(0, line)
        elif not more:
            raise SourceError(f"{path} has no rows", "Give a file that has")
        self.index: tuple[str, ...] = ()
        self.empty: tuple[str, ...] = ()
        self.names = self._named(line) if header else [f"f{i}" for i in range(len(line))]
        if not header and self._is_empty(len(line) - 1):
            self.empty = (self.names[-1],)
        if len(set(self.names)) < len(self.names):
            raise SourceError(
                f"{path} has two columns with the same name",
                f"Rename one, or give {spelling().given('header', False)} if the first line has no "
                "names",
            )

    def _named(self, line: list[str]) -> list[str]:
        """The names of the columns from a line of names, with names for those without."""
        line = list(line)
        if self.first and all(len(row) == len(line) + 1 for row in self.first):
            # All rows have one field more, which is empty or has the names of rows.
            line.insert(len(line) if self._is_empty(len(line)) else 0, "")
        names = _filled(line)
        for place, name in enumerate(names):
            if not line[place] and self._is_empty(place):
                self.empty += (name,)
            elif is_index(place, name):
                self.index += (name,)
        return names

    def _is_empty(self, place: int) -> bool:
        """Whether a column is empty in the first rows."""
        fields = [row[place] for row in self.first if place < len(row)]
        return len(self.first) > 1 and bool(fields) and not any(map(str.strip, fields))

    def words(self) -> dict[str, str]:
        """Columns whose first fields are all words, each with the first of these.

        Missing ones are passed over, unless there are no others.
        """
        found = {}
        for place, name in enumerate(self.names):
            texts = [row[place].strip() for row in self.first if place < len(row)]
            given = [text for text in texts if not _is_missing_number(text)]
            if given and not any(map(is_number, given[:_WORDS])):
                found[name] = given[0]
        return found

    def _begin(self, encoding: str | None) -> tuple[list[str], list[list[str]], bool]:
        """The first line, some rows after it, and whether there are any."""
        text = self._beginning(encoding)
        try:
            unquoted = re.sub(r'"[^"]*"', "", text).partition("\n")[0]
            self._delimiter = max(",;\t", key=unquoted.count)
            lines = csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter)
            rows = list(islice(lines, _LOOKED_AT + 1))
        except csv.Error as error:
            raise SourceError(f"{self.path} is not a readable CSV file: {error}") from None
        if not rows or not rows[0]:
            raise SourceError(
                f"{self.path} is empty, or starts with an empty line", "Check the file"
            )
        more = any(rows[1:])
        if len(text) == _BLOCK:
            rows.pop()  # it may be truncated
        if not rows:
            raise SourceError(
                f"the first line of {self.path} is longer than {_BLOCK} characters",
                "Check the file",
            )
        fields = [field for row in rows for field in row]
        commas = [field for field in fields if _COMMA.fullmatch(field)]
        self.decimal_commas = (
            self._delimiter != ","
            and bool(commas)
            and not any(map(_POINT.fullmatch, fields))
            # With tabs, 1,234 and 12,345 may be thousands.
            and (self._delimiter == ";" or not all(map(_THOUSANDS.fullmatch, commas)))
        )
        if self.decimal_commas:
            rows = [[_COMMA.sub(_AS_POINT, field) for field in row] for row in rows]
        return [name.strip() for name in rows[0]], [row for row in rows[1:] if row], more

    def _beginning(self, encoding: str | None) -> str:
        """The first characters of the file; sets the encoding."""
        try:
            with open_bytes(self.path) as file:
                self._encoding = encoding or encoding_of(file.read(4))
                file.seek(0)
                with io.TextIOWrapper(file, self._encoding, newline="") as text:
                    found = text.read(_BLOCK)
        except LookupError:
            raise UsageError(
                f"{spelling().setting('encoding')} cannot be {encoding}",
                "Give an encoding of Python, such as latin-1 or cp1252",
            ) from None
        except UnicodeError:
            raise SourceError(
                f"{self.path} is not a CSV file in {self._encoding}", _encoding_hint()
            ) from None
        except (OSError, EOFError, zlib.error) as error:
            raise self._unreadable("is not a readable CSV file", error) from None
        if "\0" in found:
            raise SourceError(
                f"{self.path} is not a readable CSV file: it has zero bytes",
                "If it is UTF-16 without a byte order mark, give "
                + spelling().given("encoding", "utf-16-le"),
            )
        return found.removeprefix("\ufeff")

    def _unreadable(self, what: str, error: Exception) -> DistsgdError:
        """The error of a file that cannot be read, or of the machine, if that is the cause."""
        if isinstance(error, OSError) and (trouble := machine_trouble(error, self.path)):
            return trouble
        return SourceError(f"{self.path} {what}: {error}", "Check it")

    def batches(self) -> Iterator[tuple[pa.RecordBatch, list[str], list[Rejected]]]:
        """Batches of rows, the place of each row, and lines with too few or too many fields."""
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
                yield _with_points(batch) if self.decimal_commas else batch, where, between
        except UnicodeError as error:
            raise SourceError(
                f"{self.path} cannot be read to its end: {error}", _encoding_hint()
            ) from None
        except (pa.ArrowException, OSError) as error:
            if "invalid UTF8" in str(error):
                raise SourceError(f"{self.path} is not all UTF-8", _encoding_hint()) from None
            raise self._unreadable("cannot be read to its end", error) from None
        if bad:
            none = pa.record_batch([pa.array([], pa.string())] * len(self.names), self.names)
            yield none, [], [rejected for _, rejected in bad]

    def _where(self, row: int) -> str:
        return f"{self.path.name} row {row}"

    def _read(self, bad: deque[tuple[int, Rejected]]) -> Iterator[pa.RecordBatch]:
        """Batches of rows; invalid lines are added to ``bad`` before the rows that follow them."""
        names = int(self.named)

        def keep(line: pc.InvalidRow) -> str:
            row = line.number - names
            why = f"it has {line.actual_columns} fields, not {line.expected_columns}"
            bad.append((row, Rejected(self._where(row), f"{why}: {(line.text or '')[:60]}")))
            return "skip"

        # A thread of Arrow releases `keep` after the end, for which it needs the interpreter. If
        # the process ended at that moment, it would abort.
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
            gone.wait(_RELEASE_SECONDS)

    def _options(self, handler: Callable[[pc.InvalidRow], str]) -> dict[str, Any]:
        return {
            "read_options": pc.ReadOptions(
                block_size=_BLOCK, use_threads=False,
                column_names=self.names, skip_rows_after_names=int(self.named),
                encoding="utf8" if self._encoding.startswith("utf-8") else self._encoding,
            ),
            "parse_options": pc.ParseOptions(
                delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=handler),
            "convert_options": pc.ConvertOptions(
                column_types={name: pa.string() for name in self.names}, strings_can_be_null=False
            ),
        }  # fmt: skip


def _encoding_hint() -> str:
    example = spelling().given("encoding", "latin-1")
    return f"Save it as UTF-8, or give its encoding, such as {example}"


def _filled(line: Sequence[str]) -> list[str]:
    """Names; columns without one get that of pandas."""
    return [name or f"Unnamed: {place}" for place, name in enumerate(line)]


def _with_points(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch with decimal points in place of decimal commas."""
    columns = [
        compute.replace_substring_regex(column, f"^{_COMMA.pattern}$", _AS_POINT)
        for column in batch.columns
    ]
    return pa.record_batch(columns, batch.schema.names)
