"""What every source of rows gives: batches of numbers or pixels, labels, and what was rejected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from distsgd.data.text_files import normal

__all__ = [
    "LARGEST",
    "Batch",
    "Label",
    "Rejected",
    "Source",
    "Wishes",
    "plain_label",
    "rows_at_once",
]

LARGEST = 1e100
"""Beyond it a number is none that can be used: sums of squares would not be finite."""

_LONGEST = 1000
"""Characters of the name of a class."""

_AT_ONCE_BYTES, _AT_ONCE_ROWS = 32 * 2**20, 1024

Label = int | str
"""As it stands in the source."""


class Rejected(NamedTuple):
    """A row that cannot be used.

    Attributes:
        where: file and row.
        why: what is wrong with it.
        size: the (rows, columns) that the others have, if it is an image of another size.
    """

    where: str
    why: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows.

    Attributes:
        values: shape (rows, features), uint8 pixels or float64 numbers.
        labels: one a row.
        rejected: rows that are in neither.
    """

    values: NDArray[Any]
    labels: list[Label]
    rejected: list[Rejected] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Rows that can be read once.

    Attributes:
        shape: of an example: (channels, rows, columns) of images, (features,) of columns.
        names: of the columns; empty if they have none.
        classes: names of the classes 0, 1, ...; None if the labels are the names.
        train: its training rows, or all of its rows.
        test: its test rows, if it says which they are.
        rows: how many it has, if that is known beforehand, for progress.
        pixels: whether its numbers are pixels, which are taken as they are.
        label: the column, or array, of the classes; empty for a folder of images.
        features: what the numbers of a row are: columns, or arrays, with their widths.
        left_out: columns that are no features though nobody has dropped them.
        notices: what a user should know of how it is read.
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
class Wishes:
    """What the user has said of a source.

    Attributes:
        label: column, or array, of the labels; None to find it.
        image: column, or array, of the images; None to find it.
        drop: columns to leave out.
        size: (rows, columns) that images are resized to; None for that of the first.
        shape: of an example, where its numbers are flat; None for the source's own.
        header: whether the first line of a CSV file has names; None to find out.
        encoding: of a CSV file; None for what its byte order mark says, or else UTF-8.
    """

    label: str | None = None
    image: str | None = None
    drop: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    shape: tuple[int, ...] | None = None
    header: bool | None = None
    encoding: str | None = None


def rows_at_once(row_bytes: int) -> int:
    """How many rows are read at a time, so that memory does not grow with their width."""
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
    raise ValueError(f"its label {value!r} is no class")
