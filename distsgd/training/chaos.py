"""What a training under chaos has suffered, and what that has cost."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from distsgd.core.chaos import PUSH_FAULTS, Chaos, Strike
from distsgd.core.plan import Plan
from distsgd.core.server.position import slots_of_lease
from distsgd.data.folder_files import remove_inside
from distsgd.proof.audit import audit
from distsgd.proof.replayer import records_of
from distsgd.runs.line_file import LineFile
from distsgd.runs.opened_run import OpenedRun
from distsgd.training.results import ChaosReport
from distsgd.transport.faulty import read_tally

if TYPE_CHECKING:
    from distsgd.on_ray.chaos_kills import Havoc

__all__ = ["ChaosWatch"]

_STALL = 0.5
"""Seconds without an update that count as lost; the driver hears of updates several times a
second."""


class ChaosWatch:
    """Keeps ``chaos.jsonl`` in the run folder: what was asked for, and each strike.

    The settings do not tell of it, so a run that is resumed or repeated is left in peace.

    Args:
        chaos: the faults.
        run: the run.
        plan: its plan.
        version: updates that there are already.
    """

    def __init__(self, chaos: Chaos, run: OpenedRun, plan: Plan, version: int) -> None:
        self.chaos, self._run, self._plan, self._start = chaos, run, plan, version
        folder = run.folder.path
        self.tally = folder / "chaos.tally"
        remove_inside(self.tally)
        self._log = LineFile(folder / "chaos.jsonl")
        self._log.write({"chaos": chaos.text, "seed": chaos.seed, "after": version})
        self._log.flush()
        self._struck: Counter[str] = Counter()
        self._stalled, self._last = 0.0, 0.0
        self._tallied: dict[str, int] = {}
        self._havoc: Havoc | None = None

    def havoc(self) -> Havoc:
        """Who carries out the strikes at processes: one for all generations of them."""
        from distsgd.on_ray.chaos_kills import Havoc

        if self._havoc is None:
            self._havoc = Havoc(self.chaos, self._start, self.struck)
        return self._havoc

    def struck(self, strike: Strike, process: str) -> None:
        """A process was struck."""
        name = strike.fault.name
        self._struck[name] += 1
        self._log.write({"fault": name, "due": strike.version, "process": process})
        self._log.flush()

    def updated(self) -> None:
        """An update has come."""
        now = time.perf_counter()
        if self._last and now - self._last > _STALL:
            self._stalled += now - self._last
        self._last = now

    def close(self) -> None:
        """Close the files; all workers are gone."""
        self._log.close()
        self._tallied = read_tally(self.tally)
        remove_inside(self.tally)

    def report(self) -> ChaosReport:
        """Audit the run, after `close`, and add up.

        Raises:
            JournalError: the journal does not hold.
        """
        audited = audit(self._run.folder.path)
        answers, slots = self._applied()
        pushes = {name: self._tallied[name] for name in PUSH_FAULTS}
        every = {**self._struck, **pushes}
        return ChaosReport(
            asked=self.chaos.text,
            seed=self.chaos.seed,
            faults={fault.name: every.get(fault.name, 0) for fault in self.chaos.faults},
            stalled_seconds=self._stalled,
            answers_in_vain=self._tallied["answers"] - answers,
            slots_in_vain=self._tallied["slots"] - slots,
            audited_updates=audited.updates,
        )

    def _applied(self) -> tuple[int, int]:
        """Answers that the updates since the start were made of, and their slots."""
        entries = [entry for entry, _ in self._run.journal().entries()]
        leases = [
            lease
            for record in records_of(entries)
            if record.version > self._start
            for _, lease in record.contributions
        ]
        slots = sum(len(list(slots_of_lease(lease, self._plan))) for lease in leases)
        return len(leases), slots
