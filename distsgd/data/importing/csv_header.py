"""Whether the first line of a CSV file has the names of its columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

__all__ = ["has_names", "is_missing", "is_number"]

_MISSING = ("", "nan", "na", "n/a", "<na>", "null")
_ALSO_MISSING = ("none", "?", "-")
"""Among numbers; as the name of a class they are words."""

_ENOUGH_ROWS, _ENOUGH_NUMBERS = 50, 5


def is_missing(text: str) -> bool:
    """Whether a field says that there is nothing."""
    return text.strip().lower() in _MISSING


def is_number(text: str) -> bool:
    """Whether a field is a number; NaN is one."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def has_names(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a first line has names, by itself and by some of the rows that follow.

    It has, if none of its fields is a number; if one is a word, and the column below is of numbers;
    if its numbers count up from 0 or 1, as names that programs give; or if the columns below its
    words are of classes, and its words are none of these.
    """
    numbers = [field for field in first if is_number(field)]
    if not numbers:
        return True
    below = {
        word: [row[i] for row in rows if i < len(row) and not _is_nothing(row[i])]
        for i, word in enumerate(first)
        if not is_number(word) and not _is_nothing(word)
    }
    if any(column and all(map(is_number, column)) for column in below.values()):
        return True
    if _count_up(numbers):
        new = all(word not in column for word, column in below.items())
        return bool(rows) and new if below else len(numbers) >= _ENOUGH_NUMBERS
    return any(_is_none_of(word, column) for word, column in below.items())


def _is_nothing(text: str) -> bool:
    return is_missing(text) or text.strip().lower() in _ALSO_MISSING


def _count_up(numbers: list[str]) -> bool:
    return numbers in ([str(start + i) for i in range(len(numbers))] for start in (0, 1))


def _is_none_of(word: str, column: list[str]) -> bool:
    """Whether a column is of words that all come again, and this one never."""
    counts = Counter(column)
    return len(column) >= _ENOUGH_ROWS and word not in counts and min(counts.values()) > 1
