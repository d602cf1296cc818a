"""Numbers and labels from the columns of Arrow tables; rows that lack either are rejected."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

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
    "batch_of",
    "column_named",
    "feature_columns",
    "is_index",
    "is_number",
    "label_column",
    "may_be_numbers",
    "refuse_doubles",
    "refuse_words",
    "suggestion",
    "widths_of",
]

_PLACE = re.compile(r"-?[0-9]{1,9}")
_INDEX = re.compile(r"Unnamed: 0(\.\d+)*")
_INDEXES = 2
"""Columns in which an index is looked for: one that was written twice is in the first two."""

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
    where: list[str],
) -> Batch:  # fmt: skip
    """Rows from columns of numbers.

    Args:
        columns: numbers, lists of numbers, or text.
        names: names of the columns.
        widths: see `widths_of`.
        labels: one a row, as the source has them.
        where: file and place of each row, for rejected ones.
    """
    why = [""] * len(labels)
    parts = [
        _numbers(column, width, name, why)
        for column, width, name in zip(columns, widths, names, strict=True)
    ]
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
    )


def _numbers(column: pa.Array, width: int, name: str, why: list[str]) -> NDArray[np.float64]:
    """A column as float64, shape (rows, width); notes in ``why`` what is not a finite number."""
    if _is_list(column):
        return _lists(column, width, name, why)
    values = _parsed(column) if _is_text(column.type) else _floats(column)
    _note_unusable(~(np.abs(values) <= LARGEST), name, why)
    return np.asarray(values, dtype=np.float64)[:, None]


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
