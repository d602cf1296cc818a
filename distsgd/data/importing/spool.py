"""What an import collects while it reads rows: the rows on disk, statistics, classes, rejects."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Ints
from distsgd.data.columns import Columns
from distsgd.data.importing.source import Label, Rejected
from distsgd.data.manifest import MOST_CLASSES
from distsgd.data.text_files import escaped, is_printable, normal
from distsgd.errors import DatasetError
from distsgd.spelling import spelling

__all__ = ["ClassCodes", "ColumnStatistics", "RejectedRows", "Spool"]


_CUT = 4.0
"""Standard deviations from the mean beyond which numbers are clipped."""


class ColumnStatistics:
    """Minimum, maximum, mean and variance of columns, updated with each batch of rows.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
    sample variances".

    Missing numbers, NaN, are left out of the minimum and the maximum only.

    Args:
        features: number of columns.

    Attributes:
        low: the least number of each column, shape (columns,).
        high: the greatest, likewise.
    """

    def __init__(self, features: int) -> None:
        self._rows = 0
        self.low, self.high = np.full(features, np.inf), np.full(features, -np.inf)
        self._mean, self._squares = np.zeros(features), np.zeros(features)

    def add(self, values: NDArray[np.float64]) -> None:
        """Add rows, shape (rows, features)."""
        if not (rows := len(values)):
            return
        self.low = np.fmin(self.low, np.fmin.reduce(values, axis=0))
        self.high = np.fmax(self.high, np.fmax.reduce(values, axis=0))
        mean, total = values.mean(axis=0), self._rows + rows
        apart = mean - self._mean
        squares = ((values - mean) ** 2).sum(axis=0)
        self._squares += squares + apart**2 * (self._rows * rows / total)
        self._mean += apart * (rows / total)
        self._rows = total

    def scale(self, names: tuple[str, ...], alike: bool) -> Columns:
        """The scale from the minimum to the maximum, clipped at 4 standard deviations.

        Args:
            names: names of the columns.
            alike: whether all columns have one range, as pixels have, which is not clipped.
        """
        if alike:
            return Columns(names=(), low=(float(self.low.min()),), high=(float(self.high.max()),))
        spread = _CUT * np.sqrt(self._squares / max(1, self._rows))
        low = np.maximum(self.low, self._mean - spread)
        high = np.minimum(self.high, self._mean + spread)
        return Columns(names=names, low=tuple(low.tolist()), high=tuple(high.tolist()))


class Spool:
    """The rows of a split in a raw file.

    Args:
        path: path of the file, which must not exist.
        features: numbers of a row.

    Attributes:
        are_pixels: whether all numbers are whole and from 0 to 255.
        greatest: the greatest number; 0 without rows.
    """

    def __init__(self, path: Path, features: int) -> None:
        self._path, self._features = path, features
        self._file: BinaryIO = path.open("xb")
        self._dtype: np.dtype[Any] = np.dtype(np.uint8)
        self._labels: list[Ints] = []
        self._weights: list[NDArray[np.float64]] = []
        self.are_pixels = True
        self.greatest = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._labels))

    def add(
        self, values: NDArray[Any], labels: Ints, weights: NDArray[np.float64] | None = None
    ) -> None:
        """Add rows, shape (rows, features), all uint8 or all float64, with their label codes."""
        if weights is not None:
            self._weights.append(weights)
        self._dtype = values.dtype
        self.greatest = max(self.greatest, float(values.max(initial=0)))
        if values.dtype != np.uint8 and self.are_pixels:
            self.are_pixels = bool(((values >= 0) & (values <= 255) & (values % 1 == 0)).all())
        self._file.write(np.ascontiguousarray(values).data)
        self._labels.append(labels)

    @property
    def labels(self) -> Ints:
        """The codes of the labels, shape (rows,), int32; see `ClassCodes`."""
        return np.concatenate(self._labels) if self._labels else np.empty(0, np.int32)

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """The weights of the rows, shape (rows,); None if they have none."""
        return np.concatenate(self._weights) if self._weights else None

    @property
    def are_bytes(self) -> bool:
        """Whether the numbers came as uint8."""
        return self._dtype == np.uint8

    def flush(self) -> None:
        """Write out the rows, so that `values` can read them."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def values(self, span: slice) -> NDArray[Any]:
        """A span of the rows, shape (rows, features), mapped from the file."""
        shape = len(self), self._features
        return np.memmap(self._path, self._dtype, "r", shape=shape)[span]

    def sample(self, rows: int) -> NDArray[Any]:
        """At most `rows` rows, evenly spaced, shape (rows, features)."""
        return self.values(slice(None, None, max(1, -(-len(self) // rows))))


class ClassCodes:
    """Assigns a code to each label when it first appears; classes are sorted at the end.

    Args:
        classes: names of the classes 0, 1, ..., if the source has them; then the codes are the
            numbers of the classes.

    Raises:
        DatasetError: there are too many, two are equal, or one cannot be printed.
    """

    def __init__(self, classes: tuple[str, ...] | None) -> None:
        self._classes = None if classes is None else tuple(map(normal, classes))
        known = self._classes or ()
        if len(known) > MOST_CLASSES:
            raise DatasetError(
                f"the source names {len(known)} classes, and there can be {MOST_CLASSES}",
                f"Use fewer, or another column: {spelling().given('label', 'NAME')}",
            )
        for name in known:
            _refuse_unprintable(name)
        if len(set(known)) < len(known):
            raise DatasetError("two classes of the source have the same name", "Rename one")
        self._codes: dict[Label, int] = {str(name): i for i, name in enumerate(known)}

    def codes(self, labels: list[Label]) -> tuple[NDArray[np.bool_], Ints, list[Rejected]]:
        """Encode labels.

        Returns:
            which of them can be used, shape (rows,), their codes, shape (rows,), and the others.

        Raises:
            DatasetError: there are too many different labels, or one cannot be printed.
        """
        if self._classes is not None:
            return self._known_codes(labels, len(self._classes))
        known = len(self._codes)
        found = [self._codes.setdefault(label, len(self._codes)) for label in labels]
        for label in islice(self._codes, known, None):
            _refuse_unprintable(label)
        if len(self._codes) > MOST_CLASSES:
            raise DatasetError(
                f"the labels have more than {MOST_CLASSES} different values, too many for classes",
                f"Name the column of the classes: {spelling().given('label', 'NAME')}",
            )
        return np.ones(len(found), dtype=np.bool_), np.array(found, dtype=np.int32), []

    def _known_codes(
        self, labels: list[Label], count: int
    ) -> tuple[NDArray[np.bool_], Ints, list[Rejected]]:
        found = [self._codes.get(x, -1) if isinstance(x, str) else x for x in labels]
        good = np.array([0 <= x < count for x in found], dtype=np.bool_)
        why = f"it is not one of the {count} classes that the source names"
        wrong = [Rejected(f"label {labels[i]!r}", why) for i in np.flatnonzero(~good)]
        return good, np.array([x if 0 <= x < count else 0 for x in found], dtype=np.int32), wrong

    def classes(self) -> tuple[tuple[str, ...], Ints]:
        """The names of the classes, and the class of each code, shape (codes,).

        Numbers come first, in their order, then words in theirs.

        Raises:
            DatasetError: there are fewer than two classes, or two with the same name.
        """
        if self._classes is not None:
            names, order = self._classes, np.arange(len(self._classes))
        else:
            found = sorted(self._codes, key=lambda label: (isinstance(label, str), label))
            names = tuple(str(label) for label in found)
            order = np.argsort([self._codes[label] for label in found])
        if len(names) < 2:
            raise DatasetError(
                f"all rows have the label '{names[0]}'", "A classifier needs two classes or more"
            )
        if len(set(names)) < len(names):
            raise DatasetError(
                "two classes have the same name, one as a number and one as a word",
                "Write the labels in one way",
            )
        return names, order


def _refuse_unprintable(label: Label) -> None:
    if isinstance(label, str) and not is_printable(label):
        raise DatasetError(
            f"the class {label!r} has characters that cannot be shown", "Rename it in the source"
        )


_SHOWN = 10


class RejectedRows:
    """Counts rejected rows, and lists them in a CSV file.

    Args:
        path: path of the file.

    Attributes:
        count: number of rejected rows.
        first: place and reason of the first ten.
        of_other_size: number of images whose size is not that of the first image.
        size: (rows, columns) of the first image, if there are such.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._writer.writerow(["where", "why"])
        self.count = 0
        self.first: list[str] = []
        self.of_other_size = 0
        self.size = (0, 0)

    def add(self, rows: Iterable[Rejected]) -> None:
        """Add rejected rows."""
        for row in rows:
            self.count += 1
            where, why = escaped(row.where), escaped(row.why)  # file names may be no valid UTF-8
            if row.size is not None:
                self.of_other_size, self.size = self.of_other_size + 1, row.size
            self._writer.writerow([where, why])
            if len(self.first) < _SHOWN:
                self.first.append(f"{where}: {why}")

    def close(self) -> None:
        """Close the file, and remove it if it has no rows. Idempotent."""
        if not self._file.closed:
            self._file.close()
            if not self.count:
                self._path.unlink()
