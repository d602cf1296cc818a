"""Sources of rows: how to read them, and the batches that they yield."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from distsgd.data.text_files import normal

__all__ = [
    "LARGEST",
    "Batch",
    "ImportOptions",
    "Label",
    "Rejected",
    "Source",
    "plain_label",
    "rows_at_once",
]

LARGEST = 1e100
"""The largest usable number: sums of squares of larger ones would not be finite."""

_LONGEST = 1000
"""Most characters of the name of a class."""

_AT_ONCE_BYTES, _AT_ONCE_ROWS = 32 * 2**20, 1024

Label = int | str
"""A label as the source has it."""


class Rejected(NamedTuple):
    """A row that cannot be used.

    Attributes:
        where: file and place of the row.
        why: what is wrong with it.
        size: the (rows, columns) of the first image, if this one has another size.
    """

    where: str
    why: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows.

    Attributes:
        values: shape (rows, features), uint8 pixels or float64 numbers.
        labels: the label of each row.
        rejected: rows that cannot be used, which are not in ``values``.
    """

    values: NDArray[Any]
    labels: list[Label]
    rejected: list[Rejected] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Rows that can be read once.

    Attributes:
        shape: shape of an example: (channels, rows, columns) of images, (features,) of columns.
        names: names of the columns; empty if they have none.
        classes: names of the classes 0, 1, ...; None if the labels are the names.
        train: reads its training rows, or all of its rows.
        test: reads its test rows; None if it does not say which they are.
        rows: the number of rows, if it is known beforehand, for progress.
        pixels: whether its numbers are pixels, which are kept as they are.
        label: the column, or array, of the classes; empty for a folder of images.
        features: the columns, or arrays, that a row is made of, with their widths.
        left_out: columns that were taken for an index, and are no features.
        notices: what the user should know about how it is read, a line each.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    train: Callable[[], Iterator[Batch]]
    test: Callable[[], Iterator[Batch]] | None = None
    rows: int | None = None
    pixels: bool = False
    label: str = ""
    features: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """How to read a source.

    Attributes:
        label: column, or array, of the labels; None to detect it.
        image: column, or array, of the images; None to detect it.
        drop: columns to leave out.
        size: (rows, columns) to which images are resized; None for the size of the first.
        shape: shape of an example, if its numbers are flat; None for the source's own.
        header: whether the first line of a CSV file has column names; None to detect it.
        encoding: encoding of a CSV file; None for that of its byte order mark, or else UTF-8.
    """

    label: str | None = None
    image: str | None = None
    drop: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    shape: tuple[int, ...] | None = None
    header: bool | None = None
    encoding: str | None = None


def rows_at_once(row_bytes: int) -> int:
    """The number of rows to read at a time, so that memory does not grow with their width."""
    return max(1, min(_AT_ONCE_ROWS, _AT_ONCE_BYTES // max(1, row_bytes)))


def plain_label(value: object) -> Label:
    """A label as a whole number, or as a word in the composed form of Unicode.

    Raises:
        ValueError: it is neither; says why.
    """
    if isinstance(value, bytes | str) and len(value) > _LONGEST:
        raise ValueError(f"its label has {len(value):,} characters, more than {_LONGEST:,}")
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        value = value.strip()
    if value is None or value == "":
        raise ValueError("it has no label")
    if isinstance(value, str):
        return normal(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError(f"its label {value!r} is neither a whole number nor a word")
