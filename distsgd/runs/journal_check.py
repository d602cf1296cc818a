"""Checks that the lines of a journal are ones that its run can have written.

Audit, replay and resume check each line before anything is computed from it, so that no number that
contradicts the plan is trusted, allocated or counted up to.

A run may be training while it is checked. A training writes an update to the journal before a
checkpoint of it, and writes a checkpoint before it drops the lines of the journal before that. So
`RunView` lists the checkpoints before it reads the journal, and retries until the journal and the
checkpoint where it begins match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.plan import Plan
from distsgd.core.server import Ledger, UpdateCheck
from distsgd.errors import JournalError, RunError, UsageError
from distsgd.runs.checkpoint import (
    Model,
    Place,
    checkpoint_versions,
    latest_checkpoint,
    resumed_settings,
)
from distsgd.runs.journal import JOURNAL, Entry, Forked, Journal, Mark, Record, Resized
from distsgd.runs.opened_run import OpenedRun

__all__ = ["Beginning", "JournalCheck", "RunView", "beginning_of", "checked_lines", "proven"]

_TRIES = 100
"""How often lines of a journal may be dropped while the checkpoint where it begins is read."""

T = TypeVar("T")


@dataclass(frozen=True)
class Beginning:
    """The point in a run where the lines of a journal begin.

    Attributes:
        config: the settings there.
        ledger: what has been applied before.
        fleet: workers there.
        mark: the place in the journal.
    """

    config: TrainConfig
    ledger: Ledger
    fleet: int
    mark: Mark


def beginning_of(run: OpenedRun, model: Model) -> Beginning:
    """Where the lines after a checkpoint begin; without a place, where the journal does.

    Raises:
        RunError: the checkpoint cannot be of this run.
    """
    place = model.place
    if place is None:
        return Beginning(run.origin, Ledger(), run.origin.workers, Mark(run.first))
    try:
        config, ledger = place.config(run.origin), Ledger.from_json(place.ledger)
        ledger.check(make_job(config, run.dataset).plan)
    except (UsageError, ValueError) as error:
        raise RunError(
            f"the checkpoint of version {model.version} of {run.folder.path} is of another run: "
            f"{error}",
            "Remove it to resume from an older one",
        ) from None
    fleet = config.workers if place.fleet is None else place.fleet
    return Beginning(config, ledger, fleet, place.mark)


class JournalCheck:
    """Checks the lines of a journal, one after another.

    Args:
        run: the run.
        begin: where the first line is.
        places: of checkpoints, to compare with the journal.

    Attributes:
        updates: the check of the updates.
        config: the settings after the last line.
    """

    def __init__(self, run: OpenedRun, begin: Beginning, places: Iterable[Place] = ()) -> None:
        self.config, self._run = begin.config, run
        self._forks = run.parent is not None and run.parent.mark == begin.mark
        self._plan = make_job(begin.config, run.dataset).plan
        # The number of replicas is that of the beginning of the run.
        ledger = Ledger.from_json(begin.ledger.to_json())  # a copy
        self.updates = UpdateCheck(self._plan, run.origin.policy(), ledger, begin.fleet)
        self._places: dict[int, list[Place]] = {}
        for place in places:
            if place.mark.lines >= begin.mark.lines:
                self._places.setdefault(place.mark.lines, []).append(place)
        self._compare(begin.mark)

    def follow(self, lines: Iterable[tuple[Entry, Mark]]) -> Iterator[tuple[Entry, Mark]]:
        """The same lines, each once it has been checked.

        Raises:
            JournalError: names the first line that the run cannot have written.
        """
        for entry, mark in lines:
            try:
                self._add(entry)
            except (UsageError, ValueError) as error:
                why = error.problem if isinstance(error, UsageError) else str(error)
                raise JournalError(self.updates.ledger.version + 1, why) from None
            self._compare(mark)
            yield entry, mark

    @property
    def plan(self) -> Plan:
        """The plan after the last line."""
        return replace(self._plan, epochs=self.config.epochs)

    @property
    def complete(self) -> bool:
        """Whether every example of every epoch was applied."""
        return self.updates.ledger.whole == self.plan.total_steps

    def end(self) -> None:
        """Check that the journal reaches as far as the checkpoints.

        Raises:
            JournalError: it does not.
        """
        if self._places:
            most = max(self._places)
            raise JournalError(
                self.updates.ledger.version + 1,
                f"it is missing: a checkpoint was written after line {most}",
            )

    def _add(self, entry: Entry) -> None:
        if isinstance(entry, Forked) or self._forks:
            self._begin_fork(entry)
        elif isinstance(entry, Record):
            self.updates.add(entry)
        elif isinstance(entry, Resized):
            self.updates.resized(entry.workers)
        else:
            self.updates.resumed(entry.version, entry.epochs, entry.workers)
            self.config = resumed_settings(self.config, entry)

    def _begin_fork(self, entry: Entry) -> None:
        """The line that binds the settings of a fork comes first in its own journal."""
        if not self._forks or not isinstance(entry, Forked):
            raise ValueError("it is not of a fork that begins here")
        if (entry.version, entry.settings) != (self.updates.ledger.version, self._run.first):
            raise ValueError("it binds other settings than those of the run")
        self._forks = False

    def _compare(self, mark: Mark) -> None:
        """Compare what checkpoints say of the journal up to here."""
        for place in self._places.pop(mark.lines, ()):
            version = self.updates.ledger.version
            if place.mark != mark:
                raise JournalError(
                    version, "a checkpoint that was written after it has a different digest of it"
                )
            settings = {name: getattr(self.config, name) for name in place.settings}
            if place.settings != settings or place.ledger != self.updates.ledger.to_json():
                raise JournalError(
                    version, "a checkpoint that was written after it has different updates"
                )


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run at one moment.

    Attributes:
        running: whether it was training then.
        finished: whether it had finished all its epochs.
        head: digest of the last line of the journal according to its report; None without one,
            or if the report may be from an earlier session.
        checkpoints: versions of the checkpoints, oldest first. The journal reaches as far as the
            newest.
        journal: the journal.
        base: the checkpoint that the journal begins with.
    """

    running: bool
    finished: bool
    head: str | None
    checkpoints: tuple[int, ...]
    journal: Journal
    base: Model


def _view(run: OpenedRun) -> RunView:
    """The run as it is now.

    Raises:
        RunError: it has no checkpoint, or none that the journal begins with.
        JournalError: the journal cannot be read.
    """
    folder, tries = run.folder, 0
    while True:
        status, report = folder.status(), folder.report()
        latest_checkpoint(folder.checkpoints)  # refuses a run without any
        known = tuple(checkpoint_versions(folder.checkpoints))
        journal = run.journal()
        try:
            base = run.base(journal.begin)
        except RunError:
            tries += 1
            if tries < _TRIES and run.journal().begin != journal.begin:
                continue
            raise
        # A run that is resumed loses its report before its journal grows.
        ended = status != "running" and folder.report() == report
        return RunView(
            running=status == "running",
            finished=status == "finished" and ended and not report.get("reason"),
            head=report.get("journal_head") if ended else None,
            checkpoints=known,
            journal=journal,
            base=base,
        )


def checked_lines(
    run: OpenedRun, view: RunView, places: Iterable[Place] = ()
) -> tuple[JournalCheck, Iterator[tuple[Entry, Mark]]]:
    """The lines of a journal, each checked against the plan of the run before it is yielded.

    Args:
        run: the run.
        view: the same at one moment.
        places: of its checkpoints, to be compared with the journal.

    Returns:
        the check, and the lines. These raise a JournalError at the first invalid line, and at their
        end if the journal is shorter than the run.
    """
    begin = view.journal.begin
    if begin.lines or run.parent is not None:
        beginning = beginning_of(run, view.base)
    else:
        beginning = Beginning(run.origin, Ledger(), run.origin.workers, begin)
    check = JournalCheck(run, beginning, places)

    def lines() -> Iterator[tuple[Entry, Mark]]:
        last = begin
        for entry, last in check.follow(view.journal.entries()):
            yield entry, last
        _check_end(view, check, last)

    return check, lines()


def _check_end(view: RunView, check: JournalCheck, end: Mark) -> None:
    """Check that the journal is not shorter than the run."""
    known, updates = view.checkpoints[-1], check.updates.ledger.version
    if updates < known:
        raise JournalError(updates + 1, f"it is missing: a checkpoint has version {known}")
    check.end()
    if view.finished and not check.complete:
        raise JournalError(updates, "the run has finished, but examples are missing")
    if view.head is not None and view.head != end.digest:
        raise JournalError(
            updates, f"the report gives {view.head} as the head of the journal, which it is not"
        )


def proven(run: OpenedRun, check: Callable[[RunView], T]) -> T:
    """The result of a check of a run. If the run changes meanwhile, an error must occur twice.

    Args:
        run: the run.
        check: checks a view of it.

    Raises:
        RunError: from ``check``; if the run is training, or was resumed or stopped since the check
            started, the same error in two readings.
    """
    before: RunError | None = None
    while True:
        state = _state(run)
        try:
            view = _view(run)
            return check(view)
        except RunError as error:
            unchanged = state[0] != "running" and _state(run) == state
            if str(error) == str(before) or unchanged:
                raise
            before = error


def _state(run: OpenedRun) -> tuple[str, set[tuple[str, int, int]]]:
    """The status of a run, and the sizes and times of its journal and checkpoints."""
    files = set()
    for path in (run.folder.path / JOURNAL, *run.folder.checkpoints.glob("*.npz")):
        with suppress(OSError):
            info = path.stat()
            files.add((path.name, info.st_size, info.st_mtime_ns))
    return run.folder.status(), files
