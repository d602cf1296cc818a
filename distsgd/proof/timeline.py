"""A run as a history: its state after any update, and the updates between any two.

A state is recomputed from the checkpoint or snapshot before it, and on the way snapshots are
written (`distsgd.runs.snapshots`), so that what is asked for next is near one. The journal is read
from there on, not from its beginning.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from distsgd.config.settings import RESUMABLE_SETTINGS, TrainConfig
from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease
from distsgd.core.optim import Residuals
from distsgd.core.server import Ledger
from distsgd.engine.blas import one_blas_thread
from distsgd.engine.job import Job, Snapshot
from distsgd.errors import JournalError, RunError, StorageError, UsageError
from distsgd.proof.replayer import Replayer, Step, records_of, refuse, start_of
from distsgd.runs import Entry, Mark, MarkMissing, Model, Place, Record, Resumed
from distsgd.runs.checkpoint import checkpoint_path, checkpoint_versions, read_if_kept
from distsgd.runs.journal_check import Beginning, JournalCheck, beginning_of
from distsgd.runs.lineage import lineage
from distsgd.runs.opened_run import OpenedRun
from distsgd.runs.snapshots import Snapshots

__all__ = ["Moment", "Timeline", "is_sufficient"]

_AT_ONCE = 4096
"""Updates that are read before they are recomputed."""

_AHEAD, _AHEAD_OF_WORKER = 64, 32
"""Updates after the last one that are read for what they read in turn: at least, a worker."""

_RECENT = 4
"""States that stay in memory."""


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
        model: the same as a checkpoint holds it.
        fleet: the most workers since the run started or resumed.
    """

    version: int
    weights: Floats
    snapshot: Snapshot
    config: TrainConfig
    ledger: Ledger
    mark: Mark
    model: Model
    fleet: int = 1


@dataclass(frozen=True, eq=False)
class _Start:
    """A state from which updates are recomputed, and where it came from."""

    model: Model
    residuals: Residuals
    cached: bool = False


@dataclass(eq=False)
class _Part:
    """Lines of the journal after a start, which are recomputed together.

    Attributes:
        start: where they begin.
        begin: the same in the journal.
        entries: the lines.
        later: some updates after them.
        end: the place after the last of them.
        places: version -> place, where a snapshot is wanted.
    """

    start: _Start
    begin: Beginning
    entries: list[Entry] = field(default_factory=list)
    later: list[Record] = field(default_factory=list)
    end: Place | None = None
    places: dict[int, Place] = field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        """All updates, those that are only looked at included."""
        return [entry for entry in self.entries if isinstance(entry, Record)] + self.later


class Timeline:
    """The history of a run; that of a fork begins with its parent's.

    Args:
        run: the run, which may be training.
        compares: whether W is compared with the fingerprint of each update that is recomputed; a
            difference is a JournalError.
        cache: whether to read and write snapshots; without the comparison there are none, as W may
            not be the run's.
    """

    def __init__(self, run: OpenedRun, *, compares: bool = True, cache: bool = True) -> None:
        self._run, self._compares, self._cache = run, compares, cache and compares
        self._snapshots: Snapshots | None = None
        self._recent: dict[int, _Start] = {}
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
            self._parent = Timeline(
                lineage(self._run)[-2].run, compares=self._compares, cache=self._cache
            )
        return self._parent

    @property
    def last(self) -> int:
        """The last update in the journal.

        Raises:
            RunError: no checkpoint can be read, or the journal is invalid.
        """
        for start in self._starts(None):
            last = start.model.version
            with suppress(MarkMissing):
                begin = beginning_of(self._run, start.model)
                lines = JournalCheck(self._run, begin).follow(self._run.entries(begin.mark))
                for entry, _ in lines:
                    last = entry.version if isinstance(entry, Record) else last
                return last
        raise RunError(
            f"{self._run.folder.path} has no checkpoint that belongs to its journal", "Train again"
        )

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
        read = {lease.version for one in records_of(later) for _, lease in one.contributions}
        with one_blas_thread():
            part = self._part(version, version, read)
            replayer = self._replayer(part, later)
            for made, _ in replayer.versions(part.entries):
                self._keep(replayer, part, made)
            snapshot = replayer.snapshot()
            reads = {n: weights for n, weights in snapshot.reads.items() if n in read}
            snapshot = replace(snapshot, reads=reads)
            self._tidy(part)
        begin, place = part.begin, part.end
        config = begin.config if place is None else place.config(self._run.origin)
        ledger = begin.ledger if place is None else Ledger.from_json(place.ledger)
        job = self._run.job(config)
        position = ledger.position(job.plan, self._run.origin.policy())
        place = place or part.start.model.place
        model = self._run.model(job, snapshot, place)
        return Moment(
            version=version,
            weights=model.weights,
            snapshot=replace(snapshot, position=position),
            config=config,
            ledger=ledger,
            mark=begin.mark if place is None else place.mark,
            model=model,
            fleet=max(1, begin.fleet) if place is None or place.fleet is None else place.fleet,
        )

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
        if last - first >= _AT_ONCE:
            self._check_known(last, self.last)
        while first <= last:
            until = min(last, first + _AT_ONCE - 1)
            with one_blas_thread():
                part = self._part(until, first - 1)
                replayer = self._replayer(part)
                try:
                    for step in replayer.steps(part.entries):
                        self._keep(replayer, part, step.record.version)
                        if step.record.version >= first:
                            yield step
                finally:
                    self._tidy(part)
            first = until + 1

    def _check_known(self, version: int, known: int) -> None:
        if known < version:
            raise UsageError(
                f"{self._run.folder.path} has no update {version}: its last is {known}",
                f"Give a number up to {known}",
            )

    def _part(self, version: int, start: int, read: Collection[int] = ()) -> _Part:
        """What is to be recomputed for the updates up to one.

        Args:
            version: the last of them.
            start: begin at the latest here.
            read: older versions of W that are to be recomputed too.
        """
        if version < 0:
            raise UsageError(f"there is no update {version}", "Updates are counted from 1")
        for found in self._starts(start):
            model = found.model
            try:
                part = self._read(found, version)
            except MarkMissing:
                self._useless(found)
                continue
            records = part.records
            made = len(records) - len(part.later)
            self._check_known(version, model.version + made)
            if not is_sufficient(model, found.residuals, records):
                self._useless(found)
            elif all(older >= model.version or older in model.reads for older in read):
                return part
        raise RunError(
            f"{self._run.folder.path} cannot be recomputed up to update {version}: its journal or "
            "its checkpoints begin later",
            f"Give a later update, from {self.first + (start < version)} on",
        )

    def _read(self, start: _Start, version: int) -> _Part:
        """The lines after a start up to an update, checked, and some more.

        Raises:
            MarkMissing: the journal has no such place.
            JournalError: it is invalid.
        """
        begin = beginning_of(self._run, start.model)
        part = _Part(start, begin)
        if version == start.model.version:
            try:  # nothing is to be read, but the place must be one of this journal
                next(iter(self._run.entries(begin.mark)), None)
            except MarkMissing:
                raise
            except JournalError:  # the next line is not asked for
                pass
            return part
        check = JournalCheck(self._run, begin)
        lines = iter(check.follow(self._run.entries(begin.mark)))
        wants, before = self._wanted(start), -1
        for entry, mark in lines:
            if isinstance(entry, Resumed):
                part.places.pop(before, None)  # what it changes is made with it
            part.entries.append(entry)
            if not isinstance(entry, Record):
                continue
            before = entry.version
            if before == version:
                part.end = _place(check, mark)
                break
            if wants and wants[0].wants(before, wants[1]):
                part.places[before] = _place(check, mark)
        if part.end is not None and wants and wants[0].wants(version, wants[1]):
            part.places[version] = part.end
        with suppress(JournalError):  # it is not asked for
            part.later.extend(self._ahead(lines, max(1, begin.fleet)))
        return part

    def _ahead(self, lines: Iterable[tuple[Entry, Mark]], fleet: int) -> Iterator[Record]:
        """Some of the next updates, where they may have read a W of before."""
        origin = self._run.origin
        policy = origin.policy()
        if policy.max_staleness == 0 and origin.compress == "none":
            return
        count = _AHEAD + _AHEAD_OF_WORKER * fleet
        for entry, _ in lines:
            if isinstance(entry, Resumed):
                return
            if isinstance(entry, Record):
                yield entry
                count -= 1
            if not count:
                return

    def _wanted(self, start: _Start) -> tuple[Snapshots, int] | None:
        """The cache, and how far apart its snapshots are; None if none are to be written."""
        snapshots = self._looked()
        if snapshots is None or self._run.origin.journal != "keep" or not snapshots.writable:
            return None
        model = start.model
        arrays = 1 + len(model.state) + sum(r.values is not None for r in start.residuals.values())
        size = arrays * model.weights.nbytes + model.preprocessing.mean.nbytes
        newest = max(checkpoint_versions(self._run.folder.checkpoints), default=0)
        spacing = snapshots.spacing(size, max(newest, model.version))
        return (snapshots, spacing) if spacing else None

    def _looked(self) -> Snapshots | None:
        """The cache as it is now."""
        if not self._cache:
            return None
        if self._snapshots is None:
            self._snapshots = Snapshots(self._run.folder)
        else:
            self._snapshots.look()
        return self._snapshots

    def _replayer(self, part: _Part, later: Sequence[Entry] = ()) -> Replayer:
        start = start_of(part.start.model, part.start.residuals)
        run = self._run
        differs = refuse(run.folder) if self._compares else None
        replayer = Replayer(part.begin.config, run.dataset, start, run.products, differs)
        replayer.keep_for([*part.later, *later])
        return replayer

    def _keep(self, replayer: Replayer, part: _Part, version: int) -> None:
        """Keep the state after an update: as a snapshot where one is wanted; the last in memory."""
        last = part.end is not None and version == part.end.ledger["version"]
        place = part.end if last else part.places.get(version)
        if place is None:
            return
        snapshot = replayer.snapshot()
        if not snapshot.usable or snapshot.residuals is None:
            return
        model = self._run.model(self._job(place), snapshot, place)
        residuals = snapshot.residuals
        ahead = [record for record in part.records if record.version > version]
        if not is_sufficient(model, residuals, ahead[: 2 * _AHEAD]):
            return
        if version in part.places and self._snapshots is not None:
            self._snapshots.add(model, residuals, self._run.origin.dtype)
        if last:
            self._recent[version] = _Start(model, residuals)
            while len(self._recent) > _RECENT:
                del self._recent[next(iter(self._recent))]

    def _job(self, place: Place) -> Job:
        return self._run.job(place.config(self._run.origin))

    def _tidy(self, part: _Part) -> None:
        if part.places and self._snapshots is not None:
            self._snapshots.thin_out()

    def _useless(self, start: _Start) -> None:
        """Forget a start from which nothing can be recomputed."""
        self._recent.pop(start.model.version, None)
        if start.cached and self._snapshots is not None:
            self._snapshots.remove(start.model.version)

    def _starts(self, version: int | None) -> Iterator[_Start]:
        """The states up to a version from which updates can be recomputed, newest first."""
        run, snapshots = self._run, self._looked()
        kept = set(checkpoint_versions(run.folder.checkpoints))
        cached = set() if snapshots is None else set(snapshots.versions)
        for found in sorted(kept | cached | set(self._recent), reverse=True):
            if version is not None and found > version:
                continue
            if found in self._recent:
                yield self._recent[found]
            if found in kept and (start := self._read_start(found)) is not None:
                yield start
            if found in cached and snapshots is not None:
                start = self._read_start(found, cached=True)
                if start is not None:
                    yield start
                else:
                    snapshots.remove(found)

    def _read_start(self, version: int, *, cached: bool = False) -> _Start | None:
        """A checkpoint, or a snapshot, with its residuals; None if it cannot be used."""
        folder = self._run.folder.snapshots if cached else self._run.folder.checkpoints
        kinds = (RunError, StorageError) if cached else (RunError,)
        try:
            model = read_if_kept(checkpoint_path(folder, version), self._run.origin.model)
            if model is None or (cached and model.place is None):
                return None
            return _Start(model, self._run.residuals(model), cached)
        except kinds:
            return None


def _place(check: JournalCheck, mark: Mark) -> Place:
    """The place after the line that was checked last."""
    return Place(
        mark=mark,
        ledger=check.updates.ledger.to_json(),
        settings={name: getattr(check.config, name) for name in RESUMABLE_SETTINGS},
        usable=True,
        fleet=check.updates.workers,
    )


def is_sufficient(model: Model, residuals: Residuals, records: Sequence[Record]) -> bool:
    """Whether updates can be recomputed from a state: it has every older W that they read, and no
    residual includes an answer to them.

    Args:
        model: the state.
        residuals: of the workers there.
        records: the updates after it; others before it count for nothing.
    """
    known = {worker: residual.serial for worker, residual in residuals.items()}
    return not any(
        _comes_before(model, known, worker, lease)
        for record in records
        if record.version > model.version
        for worker, lease in record.contributions
    )


def _comes_before(model: Model, known: dict[int, int], worker: int, lease: Lease) -> bool:
    """Whether an answer read a W, or was given, before what a state knows of."""
    read = lease.version < model.version and lease.version not in model.reads
    return read or lease.serial < known.get(worker, 0)
