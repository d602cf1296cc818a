"""The benchmark: choose who is measured, measure them in rounds, and set them side by side."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from distsgd.bench.contenders import choose
from distsgd.bench.environment import environment
from distsgd.bench.lineup import grid, line_up
from distsgd.bench.markdown import markdown
from distsgd.bench.report import Report, judged, make_rows
from distsgd.bench.rounds import measure_rounds, reason_to_skip
from distsgd.config.settings import choices
from distsgd.data.atomic import replace_file
from distsgd.data.locations import find_dataset
from distsgd.data.manifest import read_manifest
from distsgd.errors import UsageError, storage_error

__all__ = ["Options", "check_output", "run_benchmark", "write_markdown"]

ROUNDS, SECONDS = 3, 2.0
QUICK_ROUNDS, QUICK_SECONDS = 1, 0.5
_BUSY = 0.2
"""Cores busy with something else, from which figures are not to be trusted."""


_MOST_ROUNDS = 1000


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asks for.

    Attributes:
        dataset: "cifar10", "sample", or the path of a dataset folder.
        rounds: how many; None for 3, or 1 if quick.
        seconds: how long each contender is measured in a round; None for 2, or 0.5 if quick.
        only: names by commas; None for the usual line-up.
        quick: a first look.
    """

    dataset: str = "cifar10"
    rounds: int | None = None
    seconds: float | None = None
    only: str | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        if self.rounds is not None and not 1 <= self.rounds <= _MOST_ROUNDS:
            raise UsageError(
                f"--rounds cannot be {self.rounds}", f"Give a whole number from 1 to {_MOST_ROUNDS}"
            )
        if self.seconds is not None and not 0.1 <= self.seconds <= 60:
            raise UsageError(
                f"--seconds cannot be {self.seconds:g}", "Give a number from 0.1 to 60"
            )

    def how_long(self) -> tuple[int, float]:
        """Rounds, and seconds of each."""
        rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if self.quick else (ROUNDS, SECONDS)
        return self.rounds or rounds, self.seconds or seconds

    def command(self) -> str:
        """The command line that asks for this."""
        words = ["distsgd", "bench"]
        for name in ("dataset", "rounds", "seconds", "only"):
            value = getattr(self, name)
            if value is not None and (name, value) != ("dataset", "cifar10"):
                words += [f"--{name}", f"{value}"]
        return shlex.join([*words, *(["--quick"] if self.quick else [])])


def run_benchmark(options: Options, tell: Callable[[str], None]) -> Report:
    """Measure, and report.

    Args:
        options: what is asked for.
        tell: told what is going on.

    Raises:
        UsageError: an option cannot be used.
        DatasetError: there is no such dataset.
    """
    began = perf_counter()
    channels = choices("channel")
    contenders = choose(options.only, line_up(channels), grid(channels))
    examples = read_manifest(find_dataset(options.dataset)).rows("train")
    reasons = {one.name: reason_to_skip(one, examples) for one in contenders}
    rounds, seconds = options.how_long()
    measured, others = measure_rounds(
        contenders, {name: why for name, why in reasons.items() if why},
        dataset=options.dataset, rounds=rounds, seconds=seconds, tell=tell,
    )  # fmt: skip
    if others > _BUSY:
        tell(
            f"{others:.1f} cores were busy with something else: these figures are not to be trusted"
        )
    return Report(
        command=options.command(),
        dataset=options.dataset,
        rounds=rounds,
        seconds=seconds,
        environment=environment(),
        others_busy=others,
        rows=make_rows(contenders, measured),
        bars=judged(measured),
        wall_seconds=perf_counter() - began,
    )


def check_output(path: Path) -> None:
    """Refuse, before anything is measured, a file that could not be written.

    Raises:
        UsageError: says why.
    """
    if path.suffix != ".md":
        raise UsageError(f"--output {path} is no markdown file", "Give a name that ends in .md")
    if not path.parent.is_dir():
        raise UsageError(f"--output: there is no folder {path.parent}", "Make it first")


def write_markdown(path: Path, report: Report) -> None:
    """Write the report as a file to commit.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    try:
        replace_file(path, markdown(report).encode("utf-8", "backslashreplace"), shared=True)
    except OSError as error:
        raise storage_error(error, path) from None
