"""The audit: checks from the journal alone that each example was applied once in each epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Ints
from distsgd.core.plan import Plan
from distsgd.errors import JournalError, RunError
from distsgd.proof.forked import check_left, proven_parent
from distsgd.runs import (
    Place,
    Record,
    check_digest,
    checkpoint_path,
    read_if_kept,
    read_place,
    weights_sha256,
)
from distsgd.runs.journal_check import Beginning, RunView, checked_lines, proven
from distsgd.runs.lineage import lineage
from distsgd.runs.opened_run import OpenedRun, open_run

__all__ = ["Audit", "Expected", "audit"]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A digest that was kept elsewhere, and where in the history of a run it is.

    Attributes:
        digest: of a record, or the SHA-256 of W of a checkpoint.
        update: after which the journal had this digest, or the checkpoint was written.
        checkpoint: whether it is that of a checkpoint. It was compared with the file alone: that
            this W follows from the journal is what `replay` shows.
        run_dir: the run folder that has it, of a fork perhaps that of a run before it.
    """

    digest: str
    update: int
    checkpoint: bool
    run_dir: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the journal of a run shows, if nobody forged it.

    The chain of digests and the plan reveal damage, mix-ups and faults of the program. They have no
    key: a forger who makes all files of the run anew is revealed by a digest that was kept
    elsewhere alone, which ``expect`` takes.

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
        checkpoint: update of the newest readable checkpoint.
        checkpoint_sha256: SHA-256 of its W; a copy kept elsewhere shows later whether it is
            unchanged.
        parents: of a fork, how many runs before it were checked too.
        expected: where the digests are that were asked for, in their order.
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
    checkpoint: int
    checkpoint_sha256: str
    parents: int = 0
    expected: tuple[Expected, ...] = ()


def audit(run: str | Path, expect: str | Iterable[str] | None = None, own: bool = False) -> Audit:
    """Check the journal of a run against its plan.

    The journal of a run that is training is checked up to its last update. Of a fork, the whole
    history is checked, each part with its own settings.

    Args:
        run: path or name of a run, or "latest".
        expect: one or more digests, each of a record that the journal must contain, or the SHA-256
            of W of a checkpoint, as an earlier audit or the training returned it; of a fork, that
            of a run before it too, up to where that was left.
        own: of a fork, check what is its own alone.

    Raises:
        JournalError: the journal is invalid, and the first wrong record is named; or it has none of
            an expected digest.
        UsageError: ``expect`` is not a digest.
        RunError: there is no such run, or it is damaged.
    """
    given = [expect] if isinstance(expect, str) else expect or ()
    wanted = [check_digest(digest) for digest in given]
    opened = open_run(run)
    if own or opened.parent is None:
        found = proven(opened, lambda view: _audited(opened, view, wanted))
    else:
        *before, last = [_Part(one.run, one.last, wanted) for one in lineage(opened)]
        audits = [proven_parent(part.run, part.audited) for part in before]
        for part, after in pairwise([*before, last]):
            check_left(part.run, part.end, after.run)
        audits.append(proven(opened, lambda view: _audited(opened, view, wanted, all=False)))
        found = _joined(audits)
    return replace(found, expected=tuple(_expected(digest, found) for digest in wanted))


def _expected(digest: str, audit: Audit) -> Expected:
    """Where a digest is.

    Raises:
        JournalError: the history of the run has it nowhere.
    """
    for found in audit.expected:
        if found.digest == digest:
            return found
    of_w = len(digest) == 64
    reasons = ["it has changed", "this is of another run"]
    if of_w:
        reasons.append("this is of a checkpoint that was removed")
    if audit.begins_after:
        reasons.append(f"this is of before update {audit.begins_after}, where the journal begins")
    what = "checkpoint has a W with the SHA-256" if of_w else "record has the digest"
    raise JournalError(0, f"no {what} {digest}: {', or '.join(reasons)}")


class _Part:
    """A part of the history of a fork, which another run has recorded.

    Args:
        run: that run.
        last: the update at which the next part begins; None for the last.
        wanted: digests that are looked for.
    """

    def __init__(self, run: OpenedRun, last: int | None, wanted: Sequence[str]) -> None:
        self.run, self._last, self._wanted = run, last, wanted
        self.end: Beginning | None = None

    def audited(self, view: RunView) -> Audit:
        """The audit of a view of it, up to the next part."""
        first = self.run.parent is None
        return _audited(self.run, view, self._wanted, self._last, self._ends, first)

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
        expected=tuple(found for one in audits for found in one.expected),
    )


def _audited(
    opened: OpenedRun,
    view: RunView,
    wanted: Sequence[str],
    last: int | None = None,
    ends: Callable[[Beginning], None] = lambda end: None,
    all: bool = True,
) -> Audit:
    """The audit of a view of a run.

    Args:
        opened: the run.
        view: of it.
        wanted: digests that are looked for.
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
    expected: list[Expected] = []

    def look(digest: str, update: int, checkpoint: bool = False) -> None:
        if digest in wanted:
            where = str(opened.folder.path)
            expected.append(
                Expected(digest=digest, update=update, checkpoint=checkpoint, run_dir=where)
            )

    look(end.digest, before)
    for entry, mark in lines if ledger.version != last else ():
        end = mark
        if wanted:
            look(end.digest, ledger.version)
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
    known = [n for n in view.checkpoints if last is None or n <= last]
    newest, sha256 = _newest(opened, known)
    if any(len(digest) == 64 for digest in wanted):
        for version in known:
            look(_sha256_of(opened, version) or "", version, checkpoint=True)
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
        checkpoint=newest,
        checkpoint_sha256=sha256,
        expected=tuple(expected),
    )


def _sha256_of(run: OpenedRun, version: int) -> str | None:
    """The SHA-256 of W of a checkpoint; None if it is gone or damaged."""
    with suppress(RunError):
        model = read_if_kept(checkpoint_path(run.folder.checkpoints, version))
        return None if model is None else weights_sha256(model.weights)
    return None


def _newest(run: OpenedRun, versions: list[int]) -> tuple[int, str]:
    """Update and SHA-256 of W of the newest readable checkpoint among these.

    Raises:
        RunError: a training has removed all of them meanwhile.
    """
    for version in reversed(versions):
        if (sha256 := _sha256_of(run, version)) is not None:
            return version, sha256
    raise RunError(f"no checkpoint of {run.folder.path} can be read", "Train again")


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
