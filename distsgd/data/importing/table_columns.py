"""Numbers and labels from the columns of Arrow tables; rows that lack either are rejected."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distsgd.data.importing.source import (
    LARGEST,
    Batch,
    ImportOptions,
    Label,
    Rejected,
    plain_label,
)
from distsgd.data.text_files import escaped, nearest, normal, some_of
from distsgd.errors import SourceError, UsageError
from distsgd.spelling import spelling

__all__ = [
    "MISSING_NUMBERS",
    "MISSING_WORDS",
    "Codes",
    "batch_of",
    "column_named",
    "feature_columns",
    "is_index",
    "is_number",
    "is_words",
    "label_column",
    "may_be_numbers",
    "refuse_doubles",
    "refuse_words",
    "suggestion",
    "widths_of",
    "word_of",
    "words_of",
]

_PLACE = re.compile(r"-?[0-9]{1,9}")
_INDEX = re.compile(r"Unnamed: 0(\.\d+)*")
_INDEXES = 2
"""Columns in which an index is looked for: one that was written twice is in the first two."""

MISSING_WORDS = ("", "nan", "na", "n/a", "<na>", "null")
MISSING_NUMBERS = (*MISSING_WORDS, "none", "?", "-")
"""Missing numbers; the last three are words as the name of a class or category."""

_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]{0,17}))(?:\.0+)?")


class Codes(Protocol):
    """Turns the words of a column into numbers."""

    def codes(self, texts: Sequence[str | None]) -> NDArray[np.float64]:
        """The number of each text, shape (rows,); NaN for None."""
        ...


_NO_WORDS: Mapping[int, Codes] = {}

_LABELS = ("label", "labels", "target", "class", "y", "species")


def label_column(
    names: list[str], options: ImportOptions, where: str, likely: str | None = None
) -> str:
    """The column of the labels, as asked for or by its name.

    Args:
        names: of all columns.
        options: what the user has said.
        where: the file, for errors.
        likely: the column that probably has them, for errors; None for the last.

    Raises:
        UsageError: it is not clear which.
    """
    if options.label is not None:
        if _PLACE.fullmatch(options.label) and normal(options.label) not in map(normal, names):
            place = int(options.label)
            if -len(names) <= place < len(names):
                return names[place]
        return column_named(options.label, names, "label", where)
    lowered = [name.lower() for name in names]
    for name in _LABELS:
        if lowered.count(name) == 1:
            return names[lowered.index(name)]
    raise UsageError(
        f"it is not clear which column of {where} has the classes",
        f"Name it, probably {suggestion('label', likely or names[-1])}. "
        f"Its columns: {some_of(names)}",
    )


def suggestion(argument: str, *values: str) -> str:
    """An argument with its values, as one can type it: --label 'leaf width', or label='leaf width'.

    Several values are --drop a --drop b, or drop=('a', 'b').
    """
    return spelling().words(argument, values)


def column_named(name: str, names: Sequence[str], argument: str, where: str) -> str:
    """The column of a name, as the file writes it.

    Args:
        name: the name that the user has given.
        names: names of all columns.
        argument: how the user gave it: "label", "image" or "drop".
        where: the file, for errors.

    Raises:
        UsageError: there is none; suggests the nearest.
    """
    for found in names:
        if normal(found) == normal(name):
            return found
    near = nearest(name, names)
    meant = f"Did you mean {suggestion(argument, near)}? " if near else ""
    raise UsageError(
        f"{where} has no column '{escaped(name)}'", f"{meant}Its columns: {some_of(names)}"
    )


def feature_columns(
    names: Sequence[str], label: str, index: Collection[str], options: ImportOptions, where: str
) -> list[str]:
    """All columns except the labels, an index, and those that the user drops.

    Raises:
        UsageError: one that is dropped does not exist, or none is left.
    """
    others = {label, *index}
    others.update(column_named(name, names, "drop", where) for name in options.drop)
    if options.weight is not None:
        others.add(column_named(options.weight, names, "weight", where))
    found = [name for name in names if name not in others]
    if not found:
        raise UsageError(f"{where} has no column of numbers besides the label", "Check the file")
    return found


def refuse_words(words: dict[str, str], where: str) -> None:
    """Refuse columns that do not hold numbers, all at once.

    Args:
        words: column -> what it holds instead.
        where: the file, for errors.

    Raises:
        UsageError: there are some.
    """
    if not words:
        return
    names, kinds = [f"'{name}'" for name in words], list(dict.fromkeys(words.values()))
    which, hold, them = ("columns", "hold", "them") if len(words) > 1 else ("column", "holds", "it")
    raise UsageError(
        f"{which} {some_of(names)} of {where} {hold} {some_of(kinds)}, not numbers",
        f"Leave {them} out: {suggestion('drop', *words)}",
    )


def is_index(place: int, name: str) -> bool:
    """Whether a column is the index of a pandas table, according to its name and place."""
    return name.startswith("__index_level_") or (place < _INDEXES and bool(_INDEX.fullmatch(name)))


def refuse_doubles(names: list[str], where: str) -> None:
    """Refuse two columns of the same name.

    Raises:
        SourceError: there are some.
    """
    for name in names:
        if names.count(name) > 1:
            raise SourceError(f"{where} has two columns named '{name}'", "Rename one")


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type can be features: numbers, or lists of them."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return is_number(kind.value_type)
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )  # fmt: skip


def is_words(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    if pa.types.is_dictionary(kind):
        return is_words(kind.value_type)
    return _is_text(kind)


def _is_list(column: pa.Array) -> bool:
    return bool(pa.types.is_nested(column.type))


def may_be_numbers(kind: pa.DataType) -> bool:
    """Whether a column of this type holds numbers, or text that may be numbers."""
    return is_number(kind) or _is_text(kind)


def widths_of(columns: list[pa.Array]) -> list[int]:
    """The number of features of each column: 1, or the length of its first list."""
    return [
        len(next((_flat(item) for item in column if item.is_valid), ())) if _is_list(column) else 1
        for column in columns
    ]


def batch_of(
    columns: list[pa.Array], names: list[str], widths: list[int], labels: list[object],
    where: list[str], words: Mapping[int, Codes] = _NO_WORDS, missing: str = "reject",
    weights: pa.Array | None = None,
) -> Batch:  # fmt: skip
    """Rows from columns of numbers and of words.

    Args:
        columns: numbers, lists of numbers, or text.
        names: names of the columns.
        widths: see `widths_of`.
        labels: one a row, as the source has them.
        where: file and place of each row, for rejected ones.
        words: column -> what gives its words codes, for columns of categories.
        missing: "reject" rows that lack a number or word; else it is NaN.
        weights: of the rows; None for none.
    """
    why = [""] * len(labels)
    fill = missing != "reject"
    parts = [
        _codes(column, words[place], name, why, fill)
        if place in words
        else _numbers(column, width, name, why, fill)
        for place, (column, width, name) in enumerate(zip(columns, widths, names, strict=True))
    ]
    own = None if weights is None else _numbers(weights, 1, "weight", why, False)[:, 0]
    if own is not None:
        for place in np.flatnonzero(own < 0):
            why[place] = why[place] or f"its weight {own[place]:g} is below 0"
    found: list[Label] = []
    for row, label in enumerate(labels):
        try:
            found.append(plain_label(label))
        except ValueError as error:
            found.append("")
            why[row] = why[row] or str(error)
    kept = np.array([not reason for reason in why], dtype=bool)
    return Batch(
        np.concatenate(parts, axis=1)[kept],
        [label for label, good in zip(found, kept, strict=True) if good],
        [Rejected(at, reason) for at, reason in zip(where, why, strict=True) if reason],
        None if own is None else own[kept],
    )


def _codes(
    column: pa.Array, codes: Codes, name: str, why: list[str], fill: bool
) -> NDArray[np.float64]:
    """The codes of a column of words, shape (rows, 1)."""
    texts = words_of(column)
    if not fill:
        for row, text in enumerate(texts):
            if text is None:
                why[row] = why[row] or f"column '{name}' has no word"
    return codes.codes(texts)[:, None]


def words_of(column: pa.Array) -> list[str | None]:
    """The words of a column in one form; None for a missing one."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    found: dict[object, str | None] = {None: None}
    for item in set(column.to_pylist()):
        text = normal(word_of(item)) if item is not None else ""
        found[item] = None if text.lower() in MISSING_WORDS else text
    return [found[item] for item in column.to_pylist()]


def word_of(item: object) -> str:
    """A value as the word of a category: a whole number like its digits."""
    if isinstance(item, float) and item.is_integer():
        item = int(item)
    text = str(item).strip()
    number = _WHOLE.fullmatch(text)
    return number[1] if number else text


def _numbers(
    column: pa.Array, width: int, name: str, why: list[str], fill: bool = False
) -> NDArray[np.float64]:
    """A column as float64, shape (rows, width); notes in ``why`` what is not a finite number.

    Args:
        column: numbers, lists of them, or text.
        width: numbers of a row.
        name: of the column.
        why: the reason why a row cannot be used.
        fill: whether a missing number may stay NaN.
    """
    if _is_list(column):
        return _lists(column, width, name, why)
    values = _parsed(column) if _is_text(column.type) else _floats(column)
    wrong = ~(np.abs(values) <= LARGEST)
    if fill and wrong.any():
        wrong &= ~_are_missing(column, values)
    _note_unusable(wrong, name, why)
    return np.asarray(values, dtype=np.float64)[:, None]


def _are_missing(column: pa.Array, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which entries of a column are missing, and not something that is no number."""
    if not _is_text(column.type):
        return np.isnan(values)
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(column)).to_pylist()
    return np.array([text is None or text in MISSING_NUMBERS for text in texts], dtype=np.bool_)


def _lists(column: pa.Array, width: int, name: str, why: list[str]) -> NDArray[np.float64]:
    out = np.full((len(column), width), np.nan)
    for row, item in enumerate(column):
        values = _flat(item) if item.is_valid else ()
        if len(values) != width:
            why[row] = why[row] or f"column '{name}' has {len(values)} numbers, not {width}"
        else:
            out[row] = _floats(values)
    _note_unusable(~(np.abs(out) <= LARGEST).all(axis=1), name, why)
    return out


def _flat(item: pa.Scalar) -> pa.Array:
    """All numbers of a list, or of nested lists, in order."""
    values = item.values
    while _is_list(values):
        values = values.flatten()
    return values


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _floats(column: pa.Array) -> NDArray[np.float64]:
    """Numbers as float64; whole ones beyond 2^53 are rounded."""
    return pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _parsed(column: pa.Array) -> NDArray[np.float64]:
    """Text as numbers; NaN where it is not one."""
    text = pc.utf8_trim_whitespace(column)
    try:
        return pc.cast(text, pa.float64()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    except pa.ArrowInvalid:
        return np.array([_number(item) for item in text.to_pylist()], dtype=np.float64)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _note_unusable(wrong: NDArray[np.bool_], name: str, why: list[str]) -> None:
    for row in np.flatnonzero(wrong):
        why[row] = why[row] or f"column '{name}' is not a finite number up to {LARGEST:g}"
