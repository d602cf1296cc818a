"""Cases that a seed and a number determine: played in a pool, judged, reported, played again."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.tables import Table


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a case ended.

    Attributes:
        number: of the case.
        line: what the case is.
        faults: what is wrong with how it ended; empty if it passes.
        counts: what the tables count: exit codes, or faults that were made.
        rows: the rows of the table that it belongs to, beside "all".
        seconds: what the table shows the median and the maximum of.
        computed: seconds of processor time.
        megabytes: the most memory that one of its processes took.
        output: what `--show` prints.
    """

    number: int
    line: str = ""
    faults: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    rows: tuple[str, ...] = ()
    seconds: float = 0.0
    computed: float = 0.0
    megabytes: int = 0
    output: str = ""


class Case(Protocol):
    """Everything that a process of the pool needs to play a case; it can be pickled."""

    number: int

    def run(self) -> Verdict: ...


def add_arguments(parser: argparse.ArgumentParser, cases: int, processes: int = 1) -> None:
    """The options of every sub-command that plays cases; slow ones are played one at a time."""
    parser.add_argument("cases", type=int, nargs="?", default=cases)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="the first case")
    if processes > 1:
        parser.add_argument("--jobs", type=int, default=processes, help="cases at a time")
        parser.set_defaults(minutes=math.inf)
    else:
        parser.add_argument("--minutes", type=float, default=math.inf, help="start no case later")
        parser.set_defaults(jobs=1)
    parser.add_argument("--show", action="store_true", help="print each case and its output")
    parser.add_argument("--log", type=Path, help="write verdicts into this file, as JSON lines")


def play(
    make: Callable[[int], Case],
    given: argparse.Namespace,
    prepare: Callable[[], None] | None = None,
) -> int:
    """Play the cases that the options name, and report; returns the exit code.

    Args:
        make: the case of a number.
        given: the options, with those of `add_arguments`.
        prepare: called once in every process of the pool.
    """
    until = time.monotonic() + 60 * given.minutes
    cases = (
        make(number)
        for number in range(given.first, given.first + given.cases)
        if time.monotonic() < until
    )
    processes = min(given.jobs, given.cases)
    if processes <= 1:
        if prepare:
            prepare()
        return report(map(attempt, cases), given)
    with multiprocessing.get_context("spawn").Pool(processes, prepare) as pool:
        return report(pool.imap_unordered(attempt, cases), given)


def attempt(case: Case) -> Verdict:
    """Play a case; an error of the script itself is a fault of the case."""
    try:
        return case.run()
    except Exception as error:
        return Verdict(number=case.number, faults=(f"this script: {error!r}",))


def report(verdicts: Iterator[Verdict], given: argparse.Namespace) -> int:
    """Print what fails as it comes, then by kind of fault, then a table; 1 if anything fails.

    Slow cases, which are played one at a time, have a line each.
    """
    played: list[Verdict] = []
    groups: dict[str, list[int]] = defaultdict(list)
    began = time.monotonic()
    log = given.log.open("w", buffering=1, encoding="utf-8") if given.log else None
    for verdict in verdicts:
        played.append(verdict)
        if given.show:
            print(f"{verdict.number}: {verdict.line}\n{verdict.output}", flush=True)
        elif verdict.faults or given.jobs == 1:
            done = ", ".join(verdict.faults) or f"passes ({_listed(verdict.counts)})"
            print(f"{verdict.number}: {verdict.line}: {done}; {verdict.seconds:.1f} s", flush=True)
        for fault in verdict.faults:
            groups[group_of(fault)].append(verdict.number)
        if log:
            log.write(json.dumps(verdict.__dict__) + "\n")
    for name, found in sorted(groups.items(), key=lambda item: -len(item[1])):
        print(f"\n{len(found)} times: {name}\n  {again(found[0])}")
    print()
    columns: dict[str, Callable[[Verdict], float]] = {
        "s": lambda one: one.seconds,
        "s of CPU": lambda one: one.computed,
        "MB": lambda one: one.megabytes,
    }
    shown = {name: of for name, of in columns.items() if any(map(of, played))}
    table = Table(
        "cases", "number", "pass", *(f"median, most {name}" for name in shown), "outcomes"
    )
    for row in [*sorted({row for one in played for row in one.rows}), "all"]:
        those = [one for one in played if row == "all" or row in one.rows]
        spreads = [[of(one) for one in those] or [0.0] for of in shown.values()]
        table.row(
            row, len(those), sum(not one.faults for one in those),
            *(f"{statistics.median(values):.4g}, {max(values):.4g}" for values in spreads),
            _listed(sum((one.counts for one in those), Counter[str]())),
        )  # fmt: skip
    print(f"\nin {time.monotonic() - began:.0f} s")
    return int(bool(groups))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))


def again(number: int) -> str:
    """The command line that plays this case alone, and shows it."""
    command, *options = [word for word in sys.argv[1:] if word != "--show"] or [""]
    for flag in ("--first", "--log"):
        if flag in options:
            del options[options.index(flag) : options.index(flag) + 2]
    if options and options[0].isdigit():
        del options[0]
    words = [command, "1", "--first", str(number), *options, "--show"]
    return "python scripts/faults.py " + " ".join(words)


def group_of(fault: str) -> str:
    """Equal for faults that differ in numbers, names and paths alone."""
    short = re.sub(r"(/[^\s:,']+)+", "PATH", fault)
    short = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", short)
    return re.sub(r"[0-9a-f]{8,}|[-+]?\d+([.,]\d+)*", "N", short)[:160]
