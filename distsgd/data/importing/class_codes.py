"""Labels as they stand in a source, as numbers of classes."""

from __future__ import annotations

from itertools import islice

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Ints
from distsgd.data.importing.source import Label, Rejected
from distsgd.data.manifest import MOST_CLASSES
from distsgd.data.names import is_printable, normal
from distsgd.errors import DatasetError

__all__ = ["ClassCodes"]


class ClassCodes:
    """Gives each label a code when it first comes; what class it is, is known at the end.

    Args:
        classes: names of the classes 0, 1, ..., if the source has them; then codes are numbers of
            classes.

    Raises:
        DatasetError: they are too many, two are the same, or one cannot be printed.
    """

    def __init__(self, classes: tuple[str, ...] | None) -> None:
        self._classes = None if classes is None else tuple(map(normal, classes))
        known = self._classes or ()
        if len(known) > MOST_CLASSES:
            raise DatasetError(
                f"the source names {len(known)} classes, and there can be {MOST_CLASSES}",
                "Take fewer, or another column: --label NAME",
            )
        for name in known:
            _refuse_unprintable(name)
        if len(set(known)) < len(known):
            raise DatasetError("two classes of the source have the same name", "Rename one")
        self._codes: dict[Label, int] = {str(name): i for i, name in enumerate(known)}

    def codes(self, labels: list[Label]) -> tuple[NDArray[np.bool_], Ints, list[Rejected]]:
        """Which labels can be used, shape (rows,), their codes, likewise, and what cannot.

        Raises:
            DatasetError: there are too many of them to be classes, or one cannot be printed.
        """
        if self._classes is not None:
            return self._given(labels, len(self._classes))
        known = len(self._codes)
        found = [self._codes.setdefault(label, len(self._codes)) for label in labels]
        for label in islice(self._codes, known, None):
            _refuse_unprintable(label)
        if len(self._codes) > MOST_CLASSES:
            raise DatasetError(
                f"the labels have more than {MOST_CLASSES} different values: they are no classes",
                "Say which column has the classes: --label NAME",
            )
        return np.ones(len(found), dtype=np.bool_), np.array(found, dtype=np.int32), []

    def _given(
        self, labels: list[Label], count: int
    ) -> tuple[NDArray[np.bool_], Ints, list[Rejected]]:
        found = [self._codes.get(x, -1) if isinstance(x, str) else x for x in labels]
        good = np.array([0 <= x < count for x in found], dtype=np.bool_)
        why = f"it is none of the {count} classes that the source names"
        wrong = [Rejected(f"label {labels[i]!r}", why) for i in np.flatnonzero(~good)]
        return good, np.array([x if 0 <= x < count else 0 for x in found], dtype=np.int32), wrong

    def classes(self) -> tuple[tuple[str, ...], Ints]:
        """Names of the classes, and the number of the class of each code.

        Numbers are in their order, then words in theirs.

        Raises:
            DatasetError: there are not two of them.
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
                "Write the labels alike",
            )
        return names, order


def _refuse_unprintable(label: Label) -> None:
    if isinstance(label, str) and not is_printable(label):
        raise DatasetError(
            f"the class {label!r} has characters that cannot be shown", "Rename it in the source"
        )
