"""Columns of Arrow tables as numbers and labels; rows that lack either are rejected."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distsgd.data.sources.source import LARGEST, Batch, Label, Rejected, Wishes, plain_label
from distsgd.errors import SourceError, UsageError

__all__ = ["batch_of", "is_number", "label_column", "refuse_doubles", "widths_of"]

_PLACE = re.compile(r"-?[0-9]{1,9}")
_LABELS = ("label", "labels", "target", "class", "y", "species")


def label_column(names: list[str], wishes: Wishes, where: str) -> str:
    """The column of the labels, as asked for or by its name.

    Raises:
        UsageError: it is not clear which.
    """
    if wishes.label is not None:
        if wishes.label in names:
            return wishes.label
        if _PLACE.fullmatch(wishes.label) and -len(names) <= int(wishes.label) < len(names):
            return names[int(wishes.label)]
        raise UsageError(
            f"{where} has no column '{wishes.label}'", "Its columns: " + ", ".join(names[:20])
        )
    lowered = [name.lower() for name in names]
    for name in _LABELS:
        if lowered.count(name) == 1:
            return names[lowered.index(name)]
    raise UsageError(
        f"it is not clear which column of {where} has the classes",
        "Say it: --label NAME. Its columns: " + ", ".join(names[:20]),
    )


def refuse_doubles(names: list[str], where: str) -> None:
    """Two columns of one name cannot be told apart.

    Raises:
        SourceError: there are some.
    """
    for name in names:
        if names.count(name) > 1:
            raise SourceError(f"{where} has two columns of the name '{name}'", "Rename one")


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


def widths_of(columns: list[pa.Array], names: list[str]) -> list[int]:
    """How many features each column gives: 1, or the length of its first list.

    Raises:
        UsageError: a column is not of numbers, nor of text that may be some.
    """
    for column, name in zip(columns, names, strict=True):
        if not (is_number(column.type) or _is_text(column.type)):
            raise UsageError(
                f"column '{name}' is not of numbers, but of {column.type}",
                f"Leave it out: --drop {name}",
            )
    return [
        len(next((_flat(item) for item in column if item.is_valid), ())) if _is_list(column) else 1
        for column in columns
    ]


def batch_of(
    columns: list[pa.Array], names: list[str], widths: list[int], labels: list[object],
    where: list[str],
) -> Batch:  # fmt: skip
    """Rows of columns of numbers.

    Args:
        columns: one a feature, or lists.
        names: of the columns.
        widths: see `widths_of`.
        labels: one a row, as they stand there.
        where: where each row stands.
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
    """A column as float64, shape (rows, width); what is no finite number is said in ``why``."""
    if _is_list(column):
        return _lists(column, width, name, why)
    values = _parsed(column) if _is_text(column.type) else _floats(column)
    _say_what_cannot_be_used(~(np.abs(values) <= LARGEST), name, why)
    return np.asarray(values, dtype=np.float64)[:, None]


def _lists(column: pa.Array, width: int, name: str, why: list[str]) -> NDArray[np.float64]:
    out = np.full((len(column), width), np.nan)
    for row, item in enumerate(column):
        values = _flat(item) if item.is_valid else ()
        if len(values) != width:
            why[row] = why[row] or f"column '{name}' has {len(values)} numbers, not {width}"
        else:
            out[row] = _floats(values)
    _say_what_cannot_be_used(~(np.abs(out) <= LARGEST).all(axis=1), name, why)
    return out


def _flat(item: pa.Scalar) -> pa.Array:
    """All numbers of a list, or of lists of lists, one after another."""
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
    """Text as numbers; NaN where it is none."""
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


def _say_what_cannot_be_used(wrong: NDArray[np.bool_], name: str, why: list[str]) -> None:
    for row in np.flatnonzero(wrong):
        why[row] = why[row] or f"column '{name}' is no finite number up to {LARGEST:g}"
