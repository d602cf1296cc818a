"""Arrays and tables in memory as a dataset of the cache, under a name made of their content.

The same arrays are stored once, however often they are trained on, and what was trained on them can
be resumed, audited and measured later, as on any imported dataset.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats, Ints
from distsgd.core.plan import validation_rows
from distsgd.data.atomic import installed, locked_dataset
from distsgd.data.columns import Columns
from distsgd.data.importing.source import LARGEST, plain_label
from distsgd.data.locations import ARRAYS
from distsgd.data.manifest import MANIFEST, MOST_CLASSES
from distsgd.data.shards import DEFAULT_SHARDS, label_dtype, write_dataset
from distsgd.data.standardising import SAMPLE_ROWS, standardised
from distsgd.data.text_files import is_printable, normal, some_of
from distsgd.errors import UsageError

__all__ = ["TEST_SHARE", "store_arrays", "store_rows"]

TEST_SHARE = 0.2
"""Share of the rows of each class that are for testing, if no others are given."""

_LEAST_PIXEL = 128
"""Flat rows of uint8 with a number of this size or more are pixels; smaller ones are numbers."""

_MOST_WORDS = 1000
"""Different words of a column of a table."""

_SHARD_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class _Given:
    """Rows as they were given, checked.

    Attributes:
        values: shape (rows, columns), uint8 pixels or float64 numbers; of a column of words, the
            place of each, or -1.
        labels: shape (rows,), words or whole numbers.
        shape: of an example.
        names: of the columns; empty if they have none.
        words: those of each column, none for numbers; empty if all are numbers.
    """

    values: NDArray[Any]
    labels: NDArray[Any]
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()


def store_arrays(
    rows: Any,
    labels: Any,
    *,
    test: tuple[Any, Any] | None = None,
    test_share: float = TEST_SHARE,
    weights: Any = None,
    seed: int = 0,
) -> str:
    """Store arrays as a dataset, unless that has been done; returns its name.

    Images are uint8, of shape (rows, height, width), (rows, height, width, channels) or (rows,
    channels, height, width), and stay so. Flat rows of uint8 up to 255 are pixels, too. Other rows
    are columns of numbers, which are standardised (`distsgd.data.columns`); a table may also have
    columns of words. NaN is a missing number.

    Args:
        rows: an array, a list of rows, or a table (pandas.DataFrame).
        labels: the class of each row: whole numbers or words.
        test: the same two for testing; None draws a share of the rows, by class.
        test_share: that share, above 0 and at most 0.5.
        weights: of the rows, not negative; None if all count alike. A weight of 0 leaves a row out.
        seed: of the draw.

    Raises:
        UsageError: they cannot be trained on; says why.
        StorageError: the cache cannot be written.
    """
    given = _given(rows, labels, "X", "y")
    factors = _weights(weights, len(given.values))
    if factors is not None and not factors.all():
        given = replace(given, values=given.values[factors > 0], labels=given.labels[factors > 0])
        factors = factors[factors > 0]
    held = None if test is None else _given(*_pair(test), "X of test", "y of test", given)
    if held is None and not 0 < test_share <= 0.5:
        raise UsageError(f"test_share cannot be {test_share}", "Give a share from 0 to 0.5")
    classes, numbers = _numbered(given.labels)
    dtype = label_dtype(len(classes))
    if held is None:
        drawn = validation_rows(seed, test_share, len(numbers), numbers)
        if not len(drawn):
            raise UsageError(
                f"there are no test rows: test_share={test_share} of {len(numbers)} rows is none",
                "Give more rows, or test=(X, y)",
            )
        own = given.values[drawn], numbers[drawn].astype(dtype)
        kept = np.delete(given.values, drawn, axis=0), np.delete(numbers, drawn).astype(dtype)
        factors = None if factors is None else np.delete(factors, drawn)
    else:
        own = held.values, _known(held.labels, classes).astype(dtype)
        kept = given.values, numbers.astype(dtype)
    name = f"{ARRAYS}{_digest(given, classes, kept, own, factors)}"
    with _stored(name) as beside:
        if beside is not None:
            _write(beside, name, given, classes, kept, own, factors)
    return name


def store_rows(
    rows: Floats, labels: Ints, classes: tuple[str, ...], columns: Columns, weights: Floats | None
) -> str:
    """Store standardised rows as a dataset, unless that has been done; returns its name.

    The rows are also those to test on: a dataset must have some.

    Args:
        rows: shape (rows, features), float32.
        labels: shape (rows,), the number of each row's class.
        classes: names of the classes.
        columns: how the rows were made.
        weights: of the rows, float32; None if all count alike.

    Raises:
        StorageError: the cache cannot be written.
    """
    split = np.ascontiguousarray(rows), labels.astype(label_dtype(len(classes)))
    given = _Given(*split, split[0].shape[1:], columns.names)
    name = f"{ARRAYS}{_digest(given, (*classes, repr(columns)), split, split, weights)}"
    with _stored(name) as beside:
        if beside is not None:
            shards = min(len(labels), max(DEFAULT_SHARDS, split[0].nbytes // _SHARD_BYTES + 1))
            write_dataset(
                beside, name=name, shape=given.shape, classes=classes, train=split, test=split,
                shards=shards, columns=columns, weights=weights,
            )  # fmt: skip
    return name


@contextmanager
def _stored(name: str) -> Iterator[Path | None]:
    """A folder to write the dataset into; None if it is there already."""
    with locked_dataset(name, lambda _: None) as target:
        if (target / MANIFEST).is_file():
            yield None
            return
        with installed(target) as beside:
            beside.chmod(0o700)  # rows of the user's own, which nobody asked to share
            yield beside


def _write(
    folder: Path,
    name: str,
    given: _Given,
    classes: tuple[str, ...],
    train: tuple[NDArray[Any], Ints],
    test: tuple[NDArray[Any], Ints],
    factors: Floats | None,
) -> None:
    """Write the shards and the manifest."""
    columns, shape = None, given.shape
    if given.values.dtype != np.uint8:
        values = train[0]
        stride = max(1, -(-len(values) // SAMPLE_ROWS))
        columns = standardised(
            values[::stride], lambda: [values], names=given.names, words=given.words,
            fill=bool(np.isnan(values).any() or np.isnan(test[0]).any()),
        )  # fmt: skip
        shape = (columns.features,)
        train, test = (columns.rows(values), train[1]), (columns.rows(test[0]), test[1])
    shards = min(len(train[1]), max(DEFAULT_SHARDS, train[0].nbytes // _SHARD_BYTES + 1))
    write_dataset(
        folder, name=name, shape=shape, classes=classes, train=train, test=test, shards=shards,
        columns=columns, weights=factors,
    )  # fmt: skip


def _digest(
    given: _Given,
    classes: tuple[str, ...],
    train: tuple[NDArray[Any], Ints],
    test: tuple[NDArray[Any], Ints],
    factors: Floats | None,
) -> str:
    """The first digits of a checksum of all that is stored."""
    found = hashlib.sha256(repr((given.shape, given.names, given.words, classes)).encode())
    for part in (*train, *test, *(() if factors is None else (factors,))):
        found.update(repr((part.dtype.str, part.shape)).encode())
        found.update(np.ascontiguousarray(part).data)
    return found.hexdigest()[:12]


def _pair(test: Any) -> tuple[Any, Any]:
    """Rows and labels."""
    if not isinstance(test, tuple | list) or len(test) != 2:
        raise UsageError(f"test cannot be a {type(test).__name__}", "Give a pair: test=(X, y)")
    return test[0], test[1]


def _given(rows: Any, labels: Any, x: str, y: str, like: _Given | None = None) -> _Given:
    """Check rows and labels.

    Args:
        rows: an array, a list of rows, or a table.
        labels: of the rows.
        x: what the rows are called.
        y: what the labels are called.
        like: the training rows, which these must match.
    """
    if hasattr(rows, "toarray") and not hasattr(rows, "columns"):
        raise UsageError(f"{x} is a sparse matrix", "Give X.toarray(), if it fits the memory")
    if hasattr(rows, "columns") and hasattr(rows, "dtypes"):
        values, names, words = _table(rows, x, like)
        shape: tuple[int, ...] = (values.shape[1],)
    else:
        values, shape = _array(rows, x)
        names, words = (), ()
    if like is not None:
        if like.values.dtype != np.uint8:
            values = values.astype(np.float64)
        if (shape, names, values.dtype) != (like.shape, like.names, like.values.dtype):
            raise UsageError(
                f"{x} has rows of {_rows(shape, names, values)}, and X has rows of "
                f"{_rows(like.shape, like.names, like.values)}",
                "Give the same columns, in the same order",
            )
    if values.dtype != np.uint8 and (np.abs(values) > LARGEST).any():
        raise UsageError(f"{x} has numbers that are not finite", "Remove those rows")
    found = _labels(labels, y)
    if len(found) != len(values):
        raise UsageError(f"{x} has {len(values)} rows, and {y} has {len(found)}", "Give as many")
    if not len(found):
        raise UsageError(f"{x} has no rows", "Give some")
    return _Given(values, found, shape, names, words)


def _rows(shape: tuple[int, ...], names: tuple[str, ...], values: NDArray[Any]) -> str:
    """What rows hold, in words."""
    kind = "pixels" if values.dtype == np.uint8 else "numbers"
    named = f" ({some_of(names)})" if names else ""
    return f"{'x'.join(map(str, shape))} {kind}{named}"


def _array(rows: Any, x: str) -> tuple[NDArray[Any], tuple[int, ...]]:
    """The rows of an array, flat, and the shape of an example."""
    values = np.asarray(rows)
    if values.dtype.kind not in "biuf" or values.ndim not in (2, 3, 4) or not values.size:
        raise UsageError(
            f"{x} is an array of {values.dtype} of shape {values.shape}",
            "Give numbers of shape (rows, columns), or images of uint8, (rows, height, width, "
            "channels)",
        )
    if values.ndim > 2:
        if values.dtype != np.uint8:
            raise UsageError(
                f"{x} is an array of images of {values.dtype}",
                "Give images of uint8, from 0 to 255, or flat rows: X.reshape(len(X), -1)",
            )
        if values.ndim == 3:
            values = values[:, None]
        elif values.shape[3] in (1, 3):
            values = np.moveaxis(values, 3, 1)
        shape = values.shape[1:]
        return np.ascontiguousarray(values.reshape(len(values), -1)), shape
    if values.dtype == np.uint8 and values.max() >= _LEAST_PIXEL:
        return np.ascontiguousarray(values), values.shape[1:]
    return values.astype(np.float64), values.shape[1:]


def _table(
    table: Any, x: str, like: _Given | None
) -> tuple[NDArray[np.float64], tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The numbers of a table, with words as their places; names; and the words of each column."""
    names = tuple(normal(str(name)) for name in table.columns)
    if len(set(names)) < len(names) or not names:
        raise UsageError(f"two columns of {x} have one name, or there are none", "Rename one")
    out = np.empty((len(table), len(names)))
    known = () if like is None else like.words
    words: list[tuple[str, ...]] = []
    for place, name in enumerate(names):
        column = table.iloc[:, place]
        if getattr(column.dtype, "kind", "O") in "biuf":
            out[:, place] = column.to_numpy(dtype=np.float64, na_value=np.nan)
            words.append(())
            continue
        texts = [None if text is None or text != text else normal(str(text)) for text in column]
        own = known[place] if known else tuple(sorted({t for t in texts if t is not None}))
        if len(own) > _MOST_WORDS:
            raise UsageError(
                f"column '{name}' of {x} has {len(own)} different words, more than {_MOST_WORDS}",
                "Leave it out, or make numbers of it",
            )
        places = {word: number for number, word in enumerate(own)}
        out[:, place] = [-1 if text is None else places.get(text, -1) for text in texts]
        words.append(own)
    return out, names, tuple(words) if any(words) else ()


def _labels(labels: Any, y: str) -> NDArray[Any]:
    """Labels as whole numbers or words, shape (rows,)."""
    found = np.asarray(labels)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1:
        raise UsageError(f"{y} has the shape {found.shape}", "Give the class of each row")
    if found.dtype.kind in "biu":
        return found
    try:
        plain = [plain_label(label) for label in found.tolist()]
    except ValueError as error:
        raise UsageError(f"a row of {y} cannot be used: {error}", "Remove that row") from None
    if len({type(label) for label in plain}) > 1:
        plain = [str(label) for label in plain]
    return np.array(plain)


def _numbered(labels: NDArray[Any]) -> tuple[tuple[str, ...], Ints]:
    """The names of the classes, in order, and the number of each row's."""
    found, numbers = np.unique(labels, return_inverse=True)
    if not 2 <= len(found) <= MOST_CLASSES:
        raise UsageError(
            f"y has {len(found):,} class{'es' * (len(found) != 1)}",
            f"Give rows of 2 to {MOST_CLASSES:,} classes",
        )
    names = tuple(str(name) for name in found.tolist())
    if wrong := [name for name in names if not is_printable(name)]:
        raise UsageError(f"y has the class {wrong[0]!r}, which cannot be shown", "Rename it")
    return names, numbers


def _known(labels: NDArray[Any], classes: tuple[str, ...]) -> Ints:
    """The numbers of the classes of test rows."""
    places = {name: number for number, name in enumerate(classes)}
    names = [str(label) for label in labels.tolist()]
    if wrong := [name for name in names if name not in places]:
        raise UsageError(
            f"y of test has the class '{wrong[0]}', which y has not",
            f"Its classes are {some_of(classes)}",
        )
    return np.array([places[name] for name in names])


def _weights(weights: Any, rows: int) -> NDArray[np.float64] | None:
    """Weights of rows, checked."""
    if weights is None:
        return None
    found = np.asarray(weights, dtype=np.float64)
    if found.shape != (rows,) or not np.isfinite(found).all() or found.min() < 0:
        raise UsageError(
            f"sample_weight of shape {found.shape} cannot be used for {rows} rows",
            "Give a number for each row, 0 or more",
        )
    if not found.any():
        raise UsageError("sample_weight is 0 for all rows", "Give some rows a weight above 0")
    return found
