"""What a chapter of the lecture finds: numbers beside what they should be, and figures."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from distsgd.data.find import find_dataset
from distsgd.data.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Check", "Options", "Part", "at_least", "at_most", "count_at_most", "exactly", "holds", "near",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the lecture is given.

    Attributes:
        dataset: where the images come from.
        quick: on fewer images and with fewer steps, in a minute and a half.
        workers: worker processes for what can be parallel; 0 for none.
        seed: of everything random.
        say: called with messages about progress.
    """

    dataset: str = "cifar10"
    quick: bool = False
    workers: int = 2
    seed: int = 0
    say: Callable[[str], None] = lambda text: None

    @property
    def cifar10(self) -> bool:
        """Whether the accuracies of the lecture, which are of CIFAR-10, can be expected."""
        return self.dataset == "cifar10"

    def of(self, full: int, quick: int) -> int:
        """A number of the full or of the quick lecture."""
        return quick if self.quick else full

    @cached_property
    def manifest(self) -> Manifest:
        """What the dataset is."""
        return read_manifest(find_dataset(self.dataset))

    def examples(self, full: int, quick: int) -> int:
        """`of` for a number of training examples: no more than there are."""
        return min(self.of(full, quick), self.manifest.rows("train"))

    def command(
        self, words: str, *, data: bool = True, workers: bool = False, seed: bool = True
    ) -> str:
        """What one types for the same numbers.

        Args:
            words: the command, and all flags in which the chapter differs from its defaults.
            data: whether it has --dataset.
            workers: whether it has --workers, with a default of 2.
            seed: whether it has --seed.
        """
        if data and not self.cifar10:
            words += f" --dataset {shlex.quote(self.dataset)}"
        if workers and self.workers != 2:
            words += f" --workers {self.workers}"
        return f"distsgd {words}" + (f" --seed {self.seed}" if self.seed and seed else "")


@dataclass(frozen=True, kw_only=True)
class Check:
    """A number, and whether it is what it should be.

    Attributes:
        key: of its name, among the texts of the chapter.
        value: the number.
        shown: the same, to be read.
        lecture: what the lecture or the theory says.
        tolerance: how far the number may be off.
        passed: whether it is not; None if nothing is expected of it on this dataset.
    """

    key: str
    value: float
    shown: str
    lecture: str
    tolerance: str
    passed: bool | None


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a chapter found.

    Attributes:
        commands: that print the same numbers as `checks` show, but for times.
        checks: its numbers.
        figures: by their key among the texts of the chapter.
    """

    commands: tuple[str, ...]
    checks: tuple[Check, ...]
    figures: dict[str, Figure]


def near(
    key: str, value: float, expected: float, off: float, *, percent: bool = False,
    applies: bool = True, shown: str = "",
) -> Check:  # fmt: skip
    """A number that should be within ``off`` of what is expected; ``shown`` as it is, or so."""
    factor, unit = (100, " %") if percent else (1, "")
    return Check(
        key=key, value=value, shown=shown or _shown(value, percent),
        lecture=f"{expected * factor:.4g}{unit}", tolerance=f"± {off * factor:.3g}",
        passed=abs(value - expected) <= off if applies else None,
    )  # fmt: skip


def _shown(value: float, percent: bool) -> str:
    """As the commands print it."""
    return f"{100 * value:.1f} %" if percent else f"{value:.4g}"


def at_most(key: str, value: float, limit: float, lecture: str = "0") -> Check:
    """An error that should be no larger than a limit."""
    return Check(key=key, value=value, shown=f"{value:.1e}", lecture=lecture,
                 tolerance=f"≤ {limit:.0e}", passed=value <= limit)  # fmt: skip


def at_least(
    key: str, value: float, limit: float, *, percent: bool = False, applies: bool = True
) -> Check:
    """A number that should be no smaller than a limit."""
    factor, unit = (100, " %") if percent else (1, "")
    return Check(
        key=key, value=value, shown=_shown(value, percent), lecture="",
        tolerance=f"≥ {limit * factor:.4g}{unit}", passed=value >= limit if applies else None,
    )  # fmt: skip


def exactly(key: str, value: int, expected: int) -> Check:
    """A count."""
    return Check(key=key, value=value, shown=f"{value:,}", lecture=f"{expected:,}",
                 tolerance="=", passed=value == expected)  # fmt: skip


def count_at_most(key: str, value: int, limit: int) -> Check:
    """A count from 1 to a limit."""
    return Check(key=key, value=value, shown=f"{value:,}", lecture="",
                 tolerance=f"≤ {limit:,}", passed=1 <= value <= limit)  # fmt: skip


def holds(key: str, shown: str, passed: bool, applies: bool = True) -> Check:
    """Something that is so or not."""
    return Check(key=key, value=float(passed), shown=shown, lecture="", tolerance="",
                 passed=passed if applies else None)  # fmt: skip
