"""The whole lecture: every chapter in its order, its numbers checked, its figures drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from distsgd.data.dataset import open_dataset
from distsgd.errors import UsageError
from distsgd.figures.drawn import look, svg_of
from distsgd.lecture.page.chapters import (
    chain_rule,
    descents,
    formulas,
    landscapes,
    local,
    losses,
    numerical,
    piecewise,
    random,
    samplings,
    sizes,
    steps,
    two_layers,
    why,
)
from distsgd.lecture.page.findings import Check, Options, Part
from distsgd.spelling import spelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CHAPTERS", "Chapter", "Lecture", "give_lecture"]

CHAPTERS: dict[str, Callable[[Options], Part]] = {
    "losses": losses,
    "landscapes": landscapes,
    "piecewise": piecewise,
    "random": random,
    "local": local,
    "numerical": numerical,
    "formulas": formulas,
    "chain_rule": chain_rule,
    "steps": steps,
    "descents": descents,
    "why": why,
    "sizes": sizes,
    "samplings": samplings,
    "two_layers": two_layers,
}
"""Key -> what computes it, in the order of the lecture."""

_WIDTH = 5.2
"""Inches."""


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """What a chapter found.

    Attributes:
        key: among `CHAPTERS`, and of its texts.
        commands: that make the same.
        checks: its numbers.
        seconds: it took.
        figures: SVG by key.
    """

    key: str
    commands: tuple[str, ...]
    checks: tuple[Check, ...]
    seconds: float
    figures: dict[str, str] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Lecture:
    """All of it.

    Attributes:
        dataset: where the images came from.
        quick: whether it was the short one.
        chapters: in order.
        passed: numbers that are what they should be.
        failed: numbers that are not.
        seconds: it took.
    """

    dataset: str
    quick: bool
    chapters: tuple[Chapter, ...]
    passed: int
    failed: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        """All but the figures, as plain values."""
        whole = asdict(self)
        for chapter in whole["chapters"]:
            chapter["figures"] = tuple(chapter["figures"])
        return whole


def give_lecture(options: Options, only: Sequence[str] = ()) -> Lecture:
    """Compute the chapters.

    Args:
        options: dataset, length, workers, seed.
        only: keys of some; none for all.

    Raises:
        UsageError: there is no such chapter, or the dataset is too small for it.
        DatasetError: the dataset is missing.
        ModuleNotFoundError: matplotlib is missing.
    """
    import matplotlib.figure  # noqa: F401  # now, not after the first chapter

    for key in only:
        if key not in CHAPTERS:
            raise UsageError(
                f"{spelled('only')} cannot be {key}", f"Give one of {', '.join(CHAPTERS)}"
            )
    open_dataset(options.dataset)
    began = time.perf_counter()
    with _one_session(options.workers):
        chapters = tuple(
            _chapter(key, work, options)
            for key, work in CHAPTERS.items()
            if not only or key in only
        )
    checks = [check for chapter in chapters for check in chapter.checks]
    return Lecture(
        dataset=options.dataset, quick=options.quick, chapters=chapters,
        passed=sum(check.passed is True for check in checks),
        failed=sum(check.passed is False for check in checks),
        seconds=time.perf_counter() - began,
    )  # fmt: skip


@contextmanager
def _one_session(workers: int) -> Iterator[None]:
    """One Ray for all chapters, so that it starts once."""
    if not workers:
        yield
        return
    from distsgd.on_ray.session import ray_session

    with ray_session(cpus=workers + 1):
        yield


def _chapter(key: str, work: Callable[[Options], Part], options: Options) -> Chapter:
    options.say(f"{key} ...")
    began = time.perf_counter()
    with look():
        part = work(options)
        figures = {
            name: svg_of(_narrow(figure), f"{key}-{name}") for name, figure in part.figures.items()
        }
    seconds = time.perf_counter() - began
    failed = [check.key for check in part.checks if check.passed is False]
    words = f"FAILED: {', '.join(failed)}" if failed else f"{len(part.checks)} numbers"
    options.say(f"{key}: {words}, {seconds:.1f} s")
    return Chapter(
        key=key, commands=part.commands, checks=part.checks, seconds=seconds, figures=figures
    )


def _narrow(figure: Figure) -> Figure:
    """What has one column of axes, made to fit a telephone."""
    place = figure.axes[0].get_subplotspec()
    if place is not None and place.get_gridspec().ncols == 1:
        width, height = figure.get_size_inches()
        figure.set_size_inches(_WIDTH, height * (_WIDTH / width) ** 0.5)
    return figure
