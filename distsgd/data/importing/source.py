"""Sources of rows: how to read them, and the batches that they yield."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.data.columns import PIXELS, VALUES
from distsgd.data.text_files import escaped, normal
from distsgd.errors import UsageError
from distsgd.spelling import spelling

__all__ = [
    "LARGEST",
    "MOST_WORDS",
    "Batch",
    "ImportOptions",
    "Label",
    "Rejected",
    "Source",
    "WordCodes",
    "plain_label",
    "rows_at_once",
]

LARGEST = 1e100
"""The largest usable number: sums of squares of larger ones would not be finite."""

MOST_WORDS = 256
"""Most different words of a column of categories."""

_FEW_WORDS = 20
"""Up to this number of different words, they are categories even if each row has another."""

_LONGEST = 1000
"""Most characters of the name of a class."""

MISSING = ("reject", "mean")
"""What may be done about a missing number."""

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
        values: shape (rows, columns), uint8 pixels or float64 numbers. Of a column of words, the
            codes that its `WordCodes` gave them. NaN is a missing number or word.
        labels: the label of each row.
        rejected: rows that cannot be used, which are not in ``values``.
        weights: the weight of each row, shape (rows,); None if rows have none.
    """

    values: NDArray[Any]
    labels: list[Label]
    rejected: list[Rejected] = field(default_factory=list)
    weights: NDArray[np.float64] | None = None


class WordCodes:
    """Gives each word of a column a code when it first appears.

    Args:
        name: name of the column, for errors.

    Attributes:
        words: the words, in the order of their codes.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._codes: dict[str, int] = {}

    @property
    def words(self) -> list[str]:
        """The words, in the order of their codes."""
        return list(self._codes)

    def codes(self, texts: Sequence[str | None]) -> NDArray[np.float64]:
        """The codes of some texts, shape (rows,); NaN for None.

        Raises:
            UsageError: there are too many different ones.
        """
        known = self._codes
        out = np.array(
            [np.nan if text is None else known.setdefault(text, len(known)) for text in texts],
            dtype=np.float64,
        )
        if len(known) > MOST_WORDS:
            raise self._refused(f"more than {MOST_WORDS} different words")
        return out

    def check(self, rows: int) -> None:
        """Refuse free text, after all rows have been read.

        Raises:
            UsageError: most rows have a word of their own.
        """
        if len(self._codes) > max(_FEW_WORDS, rows / 2):
            raise self._refused(f"{len(self._codes)} different words in {rows} rows")

    def _refused(self, what: str) -> UsageError:
        return UsageError(
            f"column '{escaped(self._name)}' has {what}, too many to be categories",
            f"Leave it out: {spelling().words('drop', (self._name,))}",
        )


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
        words: column -> codes of its words, for columns of categories.
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
    words: Mapping[int, WordCodes] = field(default_factory=dict)


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
        category: columns of numbers that are categories, such as codes of places.
        weight: column of the weights of rows; None for no weights.
        missing: "reject" rows that lack a number, or replace it by the "mean" of its column.
        values: "uint8" for 256 steps, "float32" for standardised numbers; None to choose.
    """

    label: str | None = None
    image: str | None = None
    drop: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    shape: tuple[int, ...] | None = None
    header: bool | None = None
    encoding: str | None = None
    category: tuple[str, ...] = ()
    weight: str | None = None
    missing: str = "reject"
    values: str | None = None

    def __post_init__(self) -> None:
        how = spelling()
        for name, allowed in (("missing", MISSING), ("values", (None, *VALUES))):
            if (value := getattr(self, name)) not in allowed:
                raise UsageError(
                    f"{how.setting(name)} cannot be {value}",
                    f"Give {' or '.join(word for word in allowed if word)}",
                )
        if self.missing == "mean" and self.values == PIXELS:
            raise UsageError(
                f"{how.given('missing', self.missing)} does not go with "
                f"{how.given('values', PIXELS)}",
                "Leave one of them out",
            )


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
