"""A run as a history: its state after any update, and the updates between any two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import Floats
from distsgd.core.server import Ledger
from distsgd.engine.blas import one_blas_thread
from distsgd.engine.job import Snapshot
from distsgd.errors import RunError, UsageError
from distsgd.proof.replayer import Replayer, Step, records_of, refuse, start_of
from distsgd.runs import Entry, Mark, MarkMissing, Model, Record
from distsgd.runs.checkpoint import checkpoint_path, checkpoint_versions, read_if_kept
from distsgd.runs.journal_check import JournalCheck, beginning_of
from distsgd.runs.lineage import lineage
from distsgd.runs.opened_run import OpenedRun

__all__ = ["Moment", "Timeline"]


@dataclass(frozen=True, eq=False)
class Moment:
    """The state of a run after an update.

    Attributes:
        version: how many updates there were.
        weights: W as a checkpoint holds it: shape (classes, features + 1), the last column the
            bias; of more layers, one vector.
        snapshot: the server then: flat padded W, state of the optimiser, residuals, position.
        config: the settings then.
        ledger: which slots had been applied.
        mark: the place in the journal.
        fleet: the most workers since the run started or resumed.
    """

    version: int
    weights: Floats
    snapshot: Snapshot
    config: TrainConfig
    ledger: Ledger
    mark: Mark
    fleet: int = 1


class Timeline:
    """The history of a run; that of a fork begins with its parent's.

    States are recomputed from the checkpoint before them.

    Args:
        run: the run, which may be training.
        compares: whether W is compared with the fingerprint of each update that is recomputed; a
            difference is a JournalError.
    """

    def __init__(self, run: OpenedRun, *, compares: bool = True) -> None:
        self._run, self._compares = run, compares
        self._parent: Timeline | None = None

    @property
    def first(self) -> int:
        """The least update whose state can be had: 0, unless the journal begins later.

        Raises:
            RunError: no checkpoint can be read, or the parent of a fork is gone.
        """
        first = self._run.base(self._run.journal().begin).version
        return self._before().first if first == self._forked_at else first

    @property
    def _forked_at(self) -> int:
        """The update at which the run was forked from its parent; -1 if it was not."""
        parent = self._run.parent
        return -1 if parent is None else parent.update

    def _before(self) -> Timeline:
        """The history of the parent of a fork.

        Raises:
            RunError: the parent is gone.
        """
        if self._parent is None:
            self._parent = Timeline(lineage(self._run)[-2].run, compares=self._compares)
        return self._parent

    @property
    def last(self) -> int:
        """The last update in the journal.

        Raises:
            RunError: no checkpoint can be read, or the journal is invalid.
        """
        start = next(self._starts(None))
        records = [entry for entry, _ in self._lines(start) if isinstance(entry, Record)]
        return records[-1].version if records else start.version

    def at(self, version: int, later: Sequence[Entry] = ()) -> Moment:
        """The state after an update; 0 is the start.

        Args:
            version: the number of the update.
            later: lines of the journal after it, whose older versions of W the snapshot is to have.

        Raises:
            UsageError: the run has no such update.
            RunError: what comes before it has been dropped or damaged.
        """
        if 0 <= version < self._forked_at:
            return self._before().at(version, later)
        with one_blas_thread():
            model, replayer, lines, check = self._replayer(version, later=later)
            replayer.keep_for(later)
            for _ in replayer.versions([entry for entry, _ in lines]):
                pass
            config, ledger = check.config, check.updates.ledger
            job = self._run.job(config)
            position = ledger.position(job.plan, self._run.origin.policy())
            snapshot = replace(replayer.snapshot(), position=position)
        mark = lines[-1][1] if lines else beginning_of(self._run, model).mark
        weights = job.architecture.unpad(snapshot.weights)
        return Moment(version, weights, snapshot, config, ledger, mark, check.updates.workers)

    def steps(self, first: int, last: int) -> Iterator[Step]:
        """The updates from one to another, both included, recomputed one after the other.

        Raises:
            UsageError, RunError: as `at`.
        """
        if first < 1:
            raise UsageError(f"there is no update {first}", "Updates are counted from 1")
        if first <= (forked := self._forked_at):
            yield from self._before().steps(first, min(last, forked))
            first = forked + 1
            if last < first:
                return
        with one_blas_thread():
            _, replayer, lines, _ = self._replayer(last, first - 1)
            for step in replayer.steps([entry for entry, _ in lines]):
                if step.record.version >= first:
                    yield step

    def _replayer(
        self, version: int, start: int | None = None, later: Sequence[Entry] = ()
    ) -> tuple[Model, Replayer, list[tuple[Entry, Mark]], JournalCheck]:
        """What recomputes the updates up to one.

        Args:
            version: the last of them.
            start: begin at the latest here; None for ``version``.
            later: lines after it, whose older versions of W are to be recomputed too.
        """
        if version < 0:
            raise UsageError(f"there is no update {version}", "Updates are counted from 1")
        for model in self._starts(version if start is None else start):
            begin = beginning_of(self._run, model)
            check = JournalCheck(self._run, begin)
            try:
                lines = list(_until(version, model.version, check.follow(
                    self._run.entries(begin.mark)
                )))  # fmt: skip
            except MarkMissing:
                continue
            records = records_of([entry for entry, _ in lines])
            known = records[-1].version if records else model.version
            if known < version:
                raise UsageError(
                    f"{self._run.folder.path} has no update {version}: its last is {known}",
                    f"Give a number up to {known}",
                )
            if any(
                lease.version < model.version and lease.version not in model.reads
                for record in (*records, *records_of(later))
                for _, lease in record.contributions
            ):
                continue
            residuals = self._run.residuals(model)
            replayer = Replayer(
                begin.config, self._run.dataset, start_of(model, residuals), self._run.products,
                refuse(self._run.folder) if self._compares else None,
            )  # fmt: skip
            return model, replayer, lines, check
        raise RunError(
            f"{self._run.folder.path} cannot be recomputed up to update {version}: its journal or "
            "its checkpoints begin later",
            f"Give a later update, from {self.first} on",
        )

    def _starts(self, version: int | None) -> Iterator[Model]:
        """The checkpoints up to a version from which updates can be recomputed, newest first."""
        folder = self._run.folder.checkpoints
        for found in reversed(checkpoint_versions(folder)):
            if version is not None and found > version:
                continue
            try:
                model = read_if_kept(checkpoint_path(folder, found), self._run.origin.model)
                if model is not None:
                    self._run.residuals(model)
                    yield model
            except RunError:
                continue

    def _lines(self, model: Model) -> Iterator[tuple[Entry, Mark]]:
        """The lines of the journal after a checkpoint, checked."""
        begin = beginning_of(self._run, model)
        yield from JournalCheck(self._run, begin).follow(self._run.entries(begin.mark))


def _until(
    version: int, start: int, lines: Iterable[tuple[Entry, Mark]]
) -> Iterator[tuple[Entry, Mark]]:
    """Lines up to the one of an update."""
    if start >= version:
        return
    for entry, mark in lines:
        yield entry, mark
        if isinstance(entry, Record) and entry.version == version:
            return
