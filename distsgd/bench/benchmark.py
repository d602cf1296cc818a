"""The benchmark: choose who is measured, measure them in rounds, and set them side by side.

Rounds: every contender once, one process at a time, then all of them again in reverse.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

from distsgd.bench.contenders import Contender, choose, grid, usual_contenders
from distsgd.bench.environment import Measurement, busy_cores, cpu_flags, environment
from distsgd.bench.processes import Finished, parse_results, run_process
from distsgd.bench.report import Report, judged, make_rows, markdown
from distsgd.config.settings import SETTINGS
from distsgd.data.atomic import replace_file
from distsgd.data.find import find_dataset
from distsgd.data.manifest import read_manifest
from distsgd.data.system import python_module
from distsgd.errors import UsageError, storage_error
from distsgd.spelling import spelled

__all__ = [
    "Options",
    "check_output",
    "in_processes",
    "reason_to_skip",
    "run_benchmark",
    "write_markdown",
]


_PACKAGES = {"torch": "PyTorch", "sklearn": "scikit-learn"}
_START_LIMIT, _RUN_LIMIT = 60.0, 40.0
"""Seconds that a process, and each run of it, may take besides those that count."""


def reason_to_skip(
    contender: Contender, examples: int, installed: Callable[[str], bool] | None = None
) -> str:
    """Why a contender cannot be measured here; empty if it can.

    Args:
        contender: whom.
        examples: of the training set.
        installed: whether a package can be imported; None to look.
    """
    there = installed or (lambda package: find_spec(package) is not None)
    if contender.needs and not there(contender.needs):
        name = _PACKAGES.get(contender.needs, contender.needs)
        return f"{name} is not installed: pip install 'distsgd[bench]'"
    if contender.batch > examples:
        return f"the training set has only {examples} images"
    return ""


def in_processes(contenders: Sequence[Contender]) -> Iterator[list[Contender]]:
    """Contenders that follow one another and share a process, together."""
    for (shared, _), group in groupby(contenders, key=lambda one: (one.shares, one.kernel)):
        members = list(group)
        yield from [members] if shared else [[one] for one in members]


def measure_rounds(
    contenders: Sequence[Contender],
    skipped: Mapping[str, str],
    *,
    dataset: str,
    rounds: int,
    seconds: float,
    tell: Callable[[str], None],
) -> tuple[dict[str, Measurement], float]:
    """Measure all contenders in interleaved rounds: A B C, C B A, A B C, ...

    So a drift of the machine, which favours the later of two, favours each of them in turn.

    Args:
        contenders: in order.
        skipped: name -> why it is not measured.
        dataset: name or path.
        rounds: how many.
        seconds: how long each is measured in a round.
        tell: called with messages about progress.

    Returns:
        what was measured, by name; and how many cores were busy between the processes, when
        nothing of ours ran, on average.
    """
    measured = {
        one.name: Measurement(name=one.name, skipped=skipped.get(one.name, ""))
        for one in contenders
    }
    for name, why in skipped.items():
        tell(f"{name}: skipped, {why}")
    present = [one for one in contenders if one.name not in skipped]
    others: list[float] = []
    for number in range(rounds):
        for together in in_processes(present[:: -1 if number % 2 else 1]):
            names = ", ".join(one.name for one in together)
            others.append(busy_cores())
            tell(f"round {number + 1} of {rounds}: {names}")
            _measure_process(together, number, dataset, seconds, measured)
    return measured, fmean(others or [0.0])


def _measure_process(
    together: Sequence[Contender],
    number: int,
    dataset: str,
    seconds: float,
    measured: Mapping[str, Measurement],
) -> None:
    kernel = together[0].kernel
    runs = [{"name": one.name, "kernel": kernel, **one.settings} for one in together]
    task = json.dumps({"dataset": dataset, "seconds": seconds, "runs": runs})
    finished = run_process(
        python_module(together[0].module, task),
        _START_LIMIT + len(runs) * (seconds + _RUN_LIMIT),
        {"OPENBLAS_CORETYPE": kernel} if kernel else None,
        peer=together[0].is_peer,
    )
    said = {content["name"]: content for content in parse_results(finished.output)}
    for one in together:
        _take(measured[one.name], said.get(one.name), finished, number)


def _take(
    measurement: Measurement, said: dict[str, Any] | None, finished: Finished, number: int
) -> None:
    if said is None:
        measurement.skipped = "it took too long" if finished.code is None else (
            f"its process failed: {finished.complaint or f'exit code {finished.code}'}"
        )  # fmt: skip
    elif "error" in said:
        measurement.skipped = said["error"]
    else:
        measurement.values[number] = said["value"]
        measurement.details = said["details"]


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
                f"{spelled('rounds')} cannot be {self.rounds}",
                f"Give a whole number from 1 to {_MOST_ROUNDS}",
            )
        if self.seconds is not None and not 0.1 <= self.seconds <= 60:
            raise UsageError(
                f"{spelled('seconds')} cannot be {self.seconds:g}", "Give a number from 0.1 to 60"
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
        tell: called with messages about progress.

    Raises:
        UsageError: an option cannot be used.
        DatasetError: there is no such dataset.
    """
    began = perf_counter()
    channels = SETTINGS["channel"].choices
    contenders = choose(options.only, usual_contenders(channels), grid(channels))
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
        bars=judged(measured, cpu_flags()),
        wall_seconds=perf_counter() - began,
    )


def check_output(path: Path) -> None:
    """Refuse, before anything is measured, a file that could not be written.

    Raises:
        UsageError: says why.
    """
    if path.suffix != ".md":
        raise UsageError(
            f"{spelled('output')} {path} is no markdown file", "Give a name that ends in .md"
        )
    if not path.parent.is_dir():
        raise UsageError(f"{spelled('output')}: there is no folder {path.parent}", "Make it first")


def write_markdown(path: Path, report: Report) -> None:
    """Write the report as a file to commit.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    try:
        replace_file(path, markdown(report).encode("utf-8", "backslashreplace"), shared=True)
    except OSError as error:
        raise storage_error(error, path) from None
