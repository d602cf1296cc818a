"""The audit: from the journal alone, that each example of each epoch was applied exactly once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distsgd.api.jobs import make_job
from distsgd.api.opened_run import OpenedRun, open_run
from distsgd.api.replayer import records_of, settings_after
from distsgd.api.run_view import RunView, proven
from distsgd.core.arrays import Ints
from distsgd.core.messages import Lease
from distsgd.core.plan import Plan
from distsgd.core.position import Ledger, slots_of_lease
from distsgd.data.dataset import Dataset
from distsgd.errors import JournalError
from distsgd.run.config import TrainConfig
from distsgd.run.journal import Record
from distsgd.run.journal_reader import check_head, find_head

__all__ = ["Audit", "audit"]

_STALENESS = {"bsp": 0, "backup": 0, "local": 0}


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the journal of a run shows.

    Attributes:
        run_dir: the run folder.
        running: whether the run was training; then all of this is as of update ``updates``.
        updates: of the run.
        begins_after: the update after which the journal begins, if the setting `journal` has had
            its beginning dropped; of what was before, a checkpoint tells. Else 0.
        complete: whether every example of every epoch was applied (else the run was cut short).
        epochs: epochs of which every example was applied exactly once.
        examples: examples applied.
        largest_staleness: of any contribution, in updates.
        class_examples: class -> how often its examples were applied.
        class_delays: class -> how often one of its examples was put off to a later update.
        head: digest of the last line of the journal. A copy kept elsewhere tells later
            whether the journal up to there is still the same.
    """

    run_dir: str
    running: bool
    updates: int
    begins_after: int
    complete: bool
    epochs: int
    examples: int
    largest_staleness: int
    class_examples: dict[str, int]
    class_delays: dict[str, int]
    head: str


def audit(run: str | Path, head: str | None = None) -> Audit:
    """Check the journal of a run against its plan.

    The run may be training: then its journal is checked as far as it has come.

    Args:
        run: path or name of a run, or "latest".
        head: digest of a line that the journal must have, as an earlier audit or the training
            gave it; None for any.

    Raises:
        JournalError: the journal does not hold; names the first record that is wrong.
        UsageError: ``head`` is no digest.
        RunError: there is no such run, or it is damaged.
    """
    if head is not None:
        check_head(head)
    opened = open_run(run)
    return proven(opened, lambda view: _audited(opened, view, head))


def _audited(opened: OpenedRun, view: RunView, head: str | None) -> Audit:
    """Raises JournalError if the journal does not hold."""
    folder, dataset = opened.folder, opened.dataset
    entries, end = view.lines()
    config, ledger = _before(opened, view)
    plan = make_job(settings_after(config, entries), dataset).plan
    checker = _Checker(config, plan, ledger)
    for record in records_of(entries):
        checker.check(record)
    _check_end(view, checker)
    if head is not None:
        find_head(view.journal, head)
    labels = dataset.train.labels
    return Audit(
        run_dir=str(folder.path),
        running=view.running,
        updates=checker.updates,
        begins_after=ledger.version,
        complete=checker.complete,
        epochs=checker.whole_epochs(),
        examples=checker.examples,
        largest_staleness=checker.largest_staleness,
        class_examples=_by_class(checker.used, checker.plan, dataset, labels),
        class_delays=_by_class(checker.delayed, checker.plan, dataset, labels),
        head=end.digest,
    )


def _before(run: OpenedRun, view: RunView) -> tuple[TrainConfig, Ledger]:
    """The settings where a journal begins, and what was applied before."""
    place = view.base.place if view.journal.begin.lines else None
    if place is None:
        return run.origin, Ledger()
    return place.config(run.origin), Ledger.from_json(place.ledger)


def _check_end(view: RunView, checker: _Checker) -> None:
    """The journal must reach as far as the run is known to have come."""
    known = view.checkpoints[-1]
    if checker.updates < known:
        raise JournalError(
            checker.updates + 1, f"it is missing: W of version {known} is in a checkpoint"
        )
    if view.finished and not checker.complete:
        raise JournalError(checker.updates, "the run has finished, but examples are missing")


class _Checker:
    """Goes through the records of a journal."""

    def __init__(self, config: TrainConfig, plan: Plan, before: Ledger) -> None:
        self.plan, self.updates = plan, before.version
        self.examples = self.largest_staleness = 0
        self.used: Counter[tuple[int, int]] = Counter()
        self.delayed: Counter[tuple[int, int]] = Counter()
        self._bound = _STALENESS.get(config.consistency, config.staleness)
        for slot in before.applied(plan):
            self._use(before.version, *slot)

    def check(self, record: Record) -> None:
        number = self.updates + 1
        if record.version != number:
            raise JournalError(number, f"it makes version {record.version}, not {number}")
        for _, lease in record.contributions:
            self._check_staleness(number, lease)
            for slot in slots_of_lease(lease, self.plan):
                self._use(number, *slot)
        for _, step, first, last in record.requeued:
            self.delayed.update((step, slot) for slot in range(first, last))
        self.updates = number

    def _check_staleness(self, number: int, lease: Lease) -> None:
        age = number - 1 - lease.version
        if age < 0 or (self._bound is not None and age > self._bound):
            raise JournalError(number, f"a gradient is {age} updates old")
        self.largest_staleness = max(self.largest_staleness, age)

    def _use(self, number: int, step: int, slot: int) -> None:
        if not (0 <= step < self.plan.total_steps and 0 <= slot < self.plan.slots(step)):
            raise JournalError(number, f"the plan has no slot {slot} of step {step}")
        if self.used[step, slot]:
            raise JournalError(number, f"slot {slot} of step {step} was applied before")
        self.used[step, slot] = 1
        low, high = self.plan.slot(step, slot)
        self.examples += high - low

    @property
    def complete(self) -> bool:
        return self.examples == self.plan.examples * self.plan.epochs

    def whole_epochs(self) -> int:
        found: Counter[int] = Counter()
        for step, slot in self.used:
            low, high = self.plan.slot(step, slot)
            found[self.plan.epoch_of(step)] += high - low
        return sum(count == self.plan.examples for count in found.values())


def _by_class(
    slots: Counter[tuple[int, int]], plan: Plan, dataset: Dataset, labels: Ints
) -> dict[str, int]:
    """How often the examples of each class are in these slots."""
    counts = np.zeros(len(dataset.manifest.classes), dtype=np.int64)
    order, epoch = plan.order(0), 0
    for (step, slot), times in sorted(slots.items()):
        if plan.epoch_of(step) != epoch:
            epoch = plan.epoch_of(step)
            order = plan.order(epoch)
        low, high = plan.slot(step, slot)
        counts += times * np.bincount(labels[order[low:high]], minlength=len(counts))
    return {name: int(n) for name, n in zip(dataset.manifest.classes, counts, strict=True)}
