"""The audit: checks from the journal alone that each example was applied once in each epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Ints
from distsgd.core.plan import Plan
from distsgd.errors import RunError
from distsgd.proof.forked import check_left, proven_parent
from distsgd.runs import (
    Place,
    Record,
    check_head,
    checkpoint_path,
    find_head,
    read_if_kept,
    read_place,
    weights_sha256,
)
from distsgd.runs.journal_check import Beginning, RunView, checked_lines, proven
from distsgd.runs.lineage import lineage
from distsgd.runs.opened_run import OpenedRun, open_run

__all__ = ["Audit", "audit"]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the journal of a run proves.

    Attributes:
        run_dir: the run folder.
        running: whether the run was training; the audit then covers the first ``updates`` updates.
        updates: of the run.
        begins_after: the update after which the journal begins, if the setting `journal` had
            earlier lines dropped; a checkpoint stands for those. Else 0.
        complete: whether every example of every epoch was applied (else the run was cut short).
        partial: whether it was cut short within an epoch.
        epochs: epochs of which every example was applied exactly once.
        examples: examples applied.
        largest_staleness: of any contribution, in updates.
        class_examples: class -> how often its examples were applied; with replacement, and a
            beginning that was dropped, in the epochs that the journal has anything of.
        class_delays: class -> how often one of its examples was deferred to a later update.
        checkpoints: how many agree with the journal.
        head: digest of the last line of the journal. A copy kept elsewhere shows later
            whether the journal up to there is unchanged.
        parents: of a fork, how many runs before it were checked too.
    """

    run_dir: str
    running: bool
    updates: int
    begins_after: int
    complete: bool
    partial: bool
    epochs: int
    examples: int
    largest_staleness: int
    class_examples: dict[str, int]
    class_delays: dict[str, int]
    checkpoints: int
    head: str
    parents: int = 0


def audit(run: str | Path, expect: str | None = None, own: bool = False) -> Audit:
    """Check the journal of a run against its plan.

    The journal of a run that is training is checked up to its last update. Of a fork, the whole
    history is checked, each part with its own settings.

    Args:
        run: path or name of a run, or "latest".
        expect: digest of a record that the journal must contain, or the SHA-256 of W of one of its
            checkpoints, as an earlier audit or the training returned it; None for no such check.
        own: of a fork, check what is its own alone.

    Raises:
        JournalError: the journal is invalid; names the first wrong record.
        UsageError: ``expect`` is not a digest.
        RunError: there is no such run, or it is damaged.
    """
    head = expect
    if head is not None:
        check_head(head)
    opened = open_run(run)
    if own or opened.parent is None:
        return proven(opened, lambda view: _audited(opened, view, head))
    *before, last = [_Part(one.run, one.last) for one in lineage(opened)]
    audits = [proven_parent(part.run, part.audited) for part in before]
    for part, after in pairwise([*before, last]):
        check_left(part.run, part.end, after.run)
    return _joined([*audits, proven(opened, lambda view: _audited(opened, view, head, all=False))])


class _Part:
    """A part of the history of a fork, which another run has recorded.

    Args:
        run: that run.
        last: the update at which the next part begins; None for the last.
    """

    def __init__(self, run: OpenedRun, last: int | None) -> None:
        self.run, self._last = run, last
        self.end: Beginning | None = None

    def audited(self, view: RunView) -> Audit:
        """The audit of a view of it, up to the next part."""
        return _audited(self.run, view, None, self._last, self._ends, self.run.parent is None)

    def _ends(self, end: Beginning) -> None:
        self.end = end


def _joined(audits: list[Audit]) -> Audit:
    """The audit of a history, of those of its parts."""
    last, counts = audits[-1], [(one.class_examples, one.class_delays) for one in audits]
    examples, delays = (
        {name: sum(part[name] for part in parts) for name in last.class_examples}
        for parts in zip(*counts, strict=True)
    )
    return replace(
        last,
        begins_after=audits[0].begins_after,
        largest_staleness=max(one.largest_staleness for one in audits),
        class_examples=examples,
        class_delays=delays,
        checkpoints=sum(one.checkpoints for one in audits),
        parents=len(audits) - 1,
    )


def _audited(
    opened: OpenedRun,
    view: RunView,
    head: str | None,
    last: int | None = None,
    ends: Callable[[Beginning], None] = lambda end: None,
    all: bool = True,
) -> Audit:
    """The audit of a view of a run.

    Args:
        opened: the run.
        view: of it.
        head: that the journal is to contain.
        last: the update to stop at; None for the last.
        ends: called with the place there.
        all: whether to count the examples that were applied before the journal begins.
    """
    dataset, places = opened.dataset, list(_places(opened, view))
    if last is not None:
        places = [place for place in places if place.ledger["version"] <= last]
    check, lines = checked_lines(opened, view, places)
    plan, ledger = check.plan, check.updates.ledger
    names, labels = dataset.manifest.classes, dataset.train.labels
    used, delayed = (_ClassCount(plan, labels, len(names)) for _ in range(2))

    def use(step: int, slot: int) -> None:
        epoch = used.add(step, slot, slot + 1)
        if used.examples[epoch] == plan.examples:
            used.close(epoch)
            delayed.close(epoch)

    before, epochs = ledger.version, ledger.whole // plan.steps_per_epoch
    if all:
        used.add_whole(epochs)
        for slot in ledger.applied(plan, epochs * plan.steps_per_epoch):
            use(*slot)
    end = view.journal.begin
    for entry, mark in lines if ledger.version != last else ():
        end = mark
        if isinstance(entry, Record):
            for _, *piece in entry.requeued:
                delayed.add(*piece)
            for _, lease in entry.contributions:
                for step, first, one_past in lease.slots(plan):
                    for number in range(first, one_past):
                        use(step, number)
            if entry.version == last:
                break
    ends(Beginning(check.config, ledger, check.updates.workers, end))
    if head is not None and not _is_checkpoint(opened, view, head):
        find_head(view.journal, head)
    begun = ledger.open_examples(plan).values()
    whole_early = sum(n == plan.examples for n in begun)
    return Audit(
        run_dir=str(opened.folder.path),
        running=view.running,
        updates=ledger.version,
        begins_after=before,
        complete=check.complete,
        partial=whole_early < len(begun),
        epochs=ledger.whole // plan.steps_per_epoch + whole_early,
        examples=ledger.examples(plan),
        largest_staleness=check.updates.largest_age,
        class_examples=dict(zip(names, used.counts(), strict=True)),
        class_delays=dict(zip(names, delayed.counts(), strict=True)),
        checkpoints=len(places),
        head=end.digest,
    )


def _is_checkpoint(run: OpenedRun, view: RunView, sha256: str) -> bool:
    """Whether this is the SHA-256 of W of a checkpoint; nothing is recomputed."""
    if len(sha256) != 64:
        return False
    paths = (checkpoint_path(run.folder.checkpoints, n) for n in view.checkpoints)
    models = (read_if_kept(path) for path in paths)
    return any(model is not None and weights_sha256(model.weights) == sha256 for model in models)


def _places(run: OpenedRun, view: RunView) -> Iterator[Place]:
    """The places of the readable checkpoints in the run."""
    for version in view.checkpoints:
        with suppress(RunError):
            place = read_place(checkpoint_path(run.folder.checkpoints, version))
            if place is not None:
                yield place


class _ClassCount:
    """How often the examples of each class are in some slots of the plan.

    Slots are kept until their epoch is closed, so that memory does not grow with the run.

    Args:
        plan: the slots of each step.
        labels: of the training set.
        classes: how many there are.

    Attributes:
        examples: epoch -> examples of the slots that are kept.
    """

    def __init__(self, plan: Plan, labels: Ints, classes: int) -> None:
        self._plan, self._labels = plan, labels
        self._counts = np.zeros(classes, dtype=object)  # whole numbers of any size
        self._slots: dict[int, list[tuple[int, int]]] = {}
        self.examples: Counter[int] = Counter()

    def add(self, step: int, first: int, last: int) -> int:
        """Some slots of a step; returns their epoch."""
        low, high = self._plan.slot(step, first)[0], self._plan.slot(step, last - 1)[1]
        epoch = self._plan.epoch_of(step)
        self._slots.setdefault(epoch, []).append((low, high))
        self.examples[epoch] += high - low
        return epoch

    def add_whole(self, epochs: int) -> None:
        """Whole epochs; with replacement their examples are not known without drawing them."""
        if self._plan.sampling != "random":
            self._counts += epochs * self._of(self._labels[self._plan.trained])

    def close(self, epoch: int) -> None:
        """Count an epoch to which nothing more is added."""
        slots = self._slots.pop(epoch, [])
        if slots:
            order = self._plan.order(epoch)
            rows = np.concatenate([order[low:high] for low, high in slots])
            self._counts += self._of(self._labels[rows])
        self.examples.pop(epoch, None)

    def counts(self) -> list[int]:
        """How often, class by class."""
        for epoch in list(self._slots):
            self.close(epoch)
        return [int(count) for count in self._counts]

    def _of(self, labels: Ints) -> NDArray[np.object_]:
        return np.bincount(labels, minlength=len(self._counts)).astype(object)
