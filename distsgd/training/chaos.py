"""Chaos: faults caused on purpose while training, and what they cost.

A request is a text such as "kill-worker:every=50,drop-push:p=0.01,seed=7".
"""

from __future__ import annotations

import difflib
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distsgd.core.chaos import PROCESS_FAULTS, PUSH_FAULTS, Chaos, Fault, Strike
from distsgd.data.folder_files import remove_inside
from distsgd.engine.events import Ended, Event, Updated
from distsgd.engine.job import Job
from distsgd.errors import UsageError
from distsgd.proof.audit import audit
from distsgd.runs import LineFile, Record
from distsgd.spelling import spelling
from distsgd.training.hooks import Context, Hook
from distsgd.training.results import ChaosReport
from distsgd.transport.faulty import read_tally

if TYPE_CHECKING:
    from distsgd.on_ray.chaos_kills import ChaosKills

__all__ = ["ChaosWatch", "chaos_from"]


_STALL = 0.5
"""Seconds without an update that count as stalled; events come several times a second."""


class ChaosWatch(Hook):
    """Causes the faults that were asked for, and keeps ``chaos.jsonl``: the request, each strike.

    The faults are no setting of the run, so a resume or a repetition causes none.

    Args:
        chaos: the faults.
    """

    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos
        self._struck: Counter[str] = Counter()
        self._stalled, self._last = 0.0, 0.0
        self._tallied: dict[str, int] = {}
        self._kills: ChaosKills | None = None

    def prepare(self, job: Job, context: Context) -> Job:
        """Start the log; faults of pushes go with the job."""
        chaos, folder = self._chaos, context.run.folder.path
        self._run, self._plan, self._start = context.run, job.plan, context.version
        self._tally = folder / "chaos.tally"
        remove_inside(self._tally)
        self._log = LineFile(folder / "chaos.jsonl")
        self._log.write({"chaos": chaos.text, "seed": chaos.seed, "after": self._start})
        self._log.flush()
        return replace(job, chaos=chaos, tally=str(self._tally))

    def process_faults(self) -> ChaosKills:
        """Kills and stops: one object for all generations of processes."""
        from distsgd.on_ray.chaos_kills import ChaosKills

        if self._kills is None:
            self._kills = ChaosKills(self._chaos, self._start, self._strike)
        return self._kills

    def _strike(self, strike: Strike, process: str) -> None:
        """Log a fault of a process."""
        name = strike.fault.name
        self._struck[name] += 1
        self._log.write({"fault": name, "due": strike.version, "process": process})
        self._log.flush()

    def event(self, event: Event) -> None:
        """Measure how long no update comes."""
        if not isinstance(event, Updated):
            return
        now = time.perf_counter()
        if self._last and now - self._last > _STALL:
            self._stalled += now - self._last
        self._last = now

    def close(self) -> None:
        """Close the files."""
        self._log.close()
        self._tallied = read_tally(self._tally)
        remove_inside(self._tally)

    def result(self, ended: Ended) -> dict[str, Any]:
        """The report of the faults, if the journal passes its audit.

        Raises:
            JournalError: it does not.
        """
        audited = audit(self._run.folder.path, own=True)
        answers, slots = self._applied()
        pushes = {name: self._tallied[name] for name in PUSH_FAULTS}
        every = {**self._struck, **pushes}
        report = ChaosReport(
            asked=self._chaos.text,
            seed=self._chaos.seed,
            faults={fault.name: every.get(fault.name, 0) for fault in self._chaos.faults},
            stalled_seconds=self._stalled,
            answers_in_vain=self._tallied["answers"] - answers,
            slots_in_vain=self._tallied["slots"] - slots,
            audited_updates=audited.updates,
        )
        return {"chaos": report}

    def _applied(self) -> tuple[int, int]:
        """Answers that the updates of this session were made of, and the slots in them."""
        leases = [
            lease
            for record, _ in self._run.journal().entries()
            if isinstance(record, Record) and record.version > self._start
            for _, lease in record.contributions
        ]
        slots = sum(last - first for lease in leases for _, first, last in lease.slots(self._plan))
        return len(leases), slots


_UNITS = {"s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|ms)")

SILENCE = 1.5
"""Default seconds for which a worker stays silent after a dropped push. The server finds a lease
overdue after a second at the earliest, and gives it to others."""

_MOMENT = "every=UPDATES or at=UPDATE"
_NEEDS = {
    "kill-worker": (_MOMENT, ("every", "at")),
    "stop-worker": (f"for=TIME and {_MOMENT}", ("every", "at", "for")),
    "kill-server": (_MOMENT, ("every", "at")),
    "drop-push": ("p=CHANCE, and optionally for=TIME", ("p", "for")),
    "dup-push": ("p=CHANCE", ("p",)),
    "delay": ("p=CHANCE and for=TIME", ("p", "for")),
}


def chaos_from(text: str, seed: int, workers: int) -> Chaos:
    """The faults that a text requests.

    Args:
        text: pieces with commas between, each FAULT:NAME=VALUE:NAME=VALUE..., or seed=N.
        seed: of the run; used for the faults if the text has none.
        workers: of the run; 0 for one process, which has no others to kill.

    Raises:
        UsageError: a piece of the text cannot be used.
    """
    faults: list[Fault] = []
    seeds: list[int] = []
    for piece in (part.strip() for part in text.split(",")):
        if piece.startswith("seed="):
            seeds.append(_whole(piece, "seed", piece[5:], 0))
        else:
            faults.append(_fault(piece))
        if len(seeds) > 1:
            raise _refused(piece, "the seed is given twice", "Give it once")
        if faults and faults[-1].name in PROCESS_FAULTS and not workers:
            raise _refused(
                piece,
                f"{spelling().given('workers', 0)} trains in one process, which has no workers or "
                "servers",
                f"Give 1 worker or more; {', '.join(PUSH_FAULTS)} need none",
            )
    if not faults:
        raise _refused(text, "no fault is requested", _known())
    return Chaos(tuple(faults), seeds[0] if seeds else seed, text)


def _refused(piece: str, why: str, hint: str) -> UsageError:
    return UsageError(f"{spelling().setting('chaos')}: '{piece}': {why}", hint)


def _known() -> str:
    return "There are: " + ", ".join(_NEEDS)


def _fault(piece: str) -> Fault:
    name, *words = piece.split(":")
    if name not in _NEEDS:
        near = difflib.get_close_matches(name, _NEEDS, 1, 0.5)
        hint = f"Did you mean {near[0]}?" if near else _known()
        raise _refused(piece, f"there is no fault '{name}'", hint)
    wanted, allowed = _NEEDS[name]
    hint = f"Write {name}: with {wanted}"
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in allowed or not equals:
            raise _refused(piece, f"'{word}' is not understood", hint)
        if key in given:
            raise _refused(piece, f"{key} is given twice", hint)
        given[key] = _PARSERS[key](piece, value)
    if name in PROCESS_FAULTS and ("every" in given) == ("at" in given):
        raise _refused(piece, "it needs one of every= and at=", hint)
    for key in ("p", "for"):
        if key in allowed and key not in given and (name, key) != ("drop-push", "for"):
            raise _refused(piece, f"it needs {key}=", hint)
    if name == "drop-push" and given["p"] == 1:
        raise _refused(piece, "no push would ever arrive", "Give a p below 1")
    return Fault(
        name, given.get("every", 0), given.get("at", 0), given.get("p", 0.0),
        given.get("for", SILENCE if name == "drop-push" else 0.0),
    )  # fmt: skip


def _whole(piece: str, key: str, value: str, least: int) -> int:
    if not value.isascii() or not value.isdigit() or int(value) < least:
        raise _refused(piece, f"{key} cannot be '{value}'", f"Give a whole number, {least} or more")
    return int(value)


def _chance(piece: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise _refused(piece, f"p cannot be '{value}'", "Give a number above 0, up to 1")
    return share


def _seconds(piece: str, value: str) -> float:
    found = _DURATION.fullmatch(value)
    if found is None or not float(found[1]):
        raise _refused(piece, f"for cannot be '{value}'", "Give a time such as 2s or 20ms")
    return float(found[1]) * _UNITS[found[2]]


_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "every": lambda piece, value: _whole(piece, "every", value, 1),
    "at": lambda piece, value: _whole(piece, "at", value, 1),
    "p": _chance,
    "for": _seconds,
}
