"""Rounds: every contender once, one process at a time, then all of them again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import groupby
from statistics import fmean
from typing import Any

from distsgd.bench.child import parse_results
from distsgd.bench.contenders import Contender
from distsgd.bench.environment import busy_cores
from distsgd.bench.measurement import Measurement
from distsgd.bench.processes import Finished, run_process
from distsgd.data.system import python_module

__all__ = ["in_processes", "measure_rounds", "reason_to_skip"]

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
    for shared, group in groupby(contenders, key=lambda one: one.shares):
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
    """Measure all contenders in interleaved rounds: A B C, A B C, ...

    Args:
        contenders: in order.
        skipped: name -> why it is not measured.
        dataset: name or path.
        rounds: how many.
        seconds: how long each is measured in a round.
        tell: told what is going on.

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
        for together in in_processes(present):
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
    runs = [{"name": one.name, **one.settings} for one in together]
    task = json.dumps({"dataset": dataset, "seconds": seconds, "runs": runs})
    finished = run_process(
        python_module(together[0].module, task),
        _START_LIMIT + len(runs) * (seconds + _RUN_LIMIT),
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
