"""The setting `without`: training examples that do not count, by number.

They stay in their minibatches, where their losses and gradients are multiplied by 0: so a run
without some examples has the minibatches, the learning rates and the updates of the run with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from distsgd.errors import UsageError
from distsgd.spelling import spelling

if TYPE_CHECKING:  # settings are read without Arrow
    from distsgd.data.dataset import Dataset

__all__ = ["EVERYTHING", "left_out_rows", "numbers_of", "text_of_numbers"]

EVERYTHING = "none"
"""No example is left out."""

_MOST = 1_000_000
_STRETCH = re.compile(r"\s*([0-9]{1,12})(?:-([0-9]{1,12}))?\s*")


def numbers_of(text: str) -> tuple[int, ...]:
    """The numbers that a text such as "3,17,40-59" names, ascending; none for "none".

    Raises:
        ValueError: it is no such text, or names more than a million.
    """
    found: set[int] = set()
    for part in text.split(",") if text != EVERYTHING else ():
        stretch = _STRETCH.fullmatch(part)
        if stretch is None:
            raise ValueError
        low, high = int(stretch[1]), int(stretch[2] or stretch[1])
        if not 0 <= high - low < _MOST - len(found):
            raise ValueError
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def text_of_numbers(numbers: Iterable[int]) -> str:
    """The text of the setting for some numbers."""
    return ",".join(str(number) for number in sorted({*map(int, numbers)})) or EVERYTHING


def left_out_rows(text: str, dataset: Dataset) -> tuple[int, ...]:
    """The training examples of a dataset that the setting leaves out.

    Raises:
        UsageError: the dataset has no such example, or no other.
    """
    rows, found = len(dataset.train), numbers_of(text)
    if found and found[-1] >= rows:
        raise UsageError(
            f"{spelling().setting('without')} names example {found[-1]}, and "
            f"{dataset.manifest.name} has {rows:,} training examples, counted from 0",
            f"Give numbers up to {rows - 1}",
        )
    if len(found) == rows:
        raise UsageError(
            f"{spelling().setting('without')} leaves no training example that counts",
            "Name fewer",
        )
    return found
