"""A run as it was at one moment, for what checks it while it may be training.

A training writes an update to the journal before a checkpoint of it, and makes a checkpoint before
it drops the lines of the journal before that. So the checkpoints are listed before the journal is
read, and what the journal begins with is looked for until both go together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from distsgd.core.server import Ledger
from distsgd.errors import JournalError, RunError
from distsgd.runs.checkpoint import Model, Place, checkpoint_versions, latest_checkpoint
from distsgd.runs.journal import JOURNAL, Entry, Journal, Mark
from distsgd.runs.journal_check import Beginning, JournalCheck, beginning_of
from distsgd.runs.opened_run import OpenedRun

__all__ = ["RunView", "checked_lines", "proven"]

_TRIES = 100
"""Times that the beginning of a journal may be dropped while its checkpoint is looked for."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as it was at one moment.

    Attributes:
        running: whether it was training then.
        finished: whether it had finished.
        head: digest of the last line of the journal that its report tells of; None if it tells of
            none, or may be of an earlier part of the run.
        checkpoints: versions of W that there were checkpoints of, oldest first. The journal
            reaches as far as the newest.
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
            finished=status == "finished" and ended,
            head=report.get("journal_head") if ended else None,
            checkpoints=known,
            journal=journal,
            base=base,
        )


def checked_lines(
    run: OpenedRun, view: RunView, places: Iterable[Place] = ()
) -> tuple[JournalCheck, Iterator[tuple[Entry, Mark]]]:
    """The lines of a journal, each checked against the plan of the run before it is given out.

    Args:
        run: the run.
        view: the same at one moment.
        places: of its checkpoints, to be compared with the journal.

    Returns:
        the check, and the lines; these raise a JournalError at the first that does not hold, and
        at their end, if the journal does not reach as far as the run is known to have come.
    """
    begin = view.journal.begin
    if begin.lines:
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
    """The journal must reach as far as the run is known to have come."""
    known, updates = view.checkpoints[-1], check.updates.ledger.version
    if updates < known:
        raise JournalError(updates + 1, f"it is missing: a checkpoint has version {known}")
    check.end()
    if view.finished and not check.complete:
        raise JournalError(updates, "the run has finished, but examples are missing")
    if view.head is not None and view.head != end.digest:
        raise JournalError(
            updates, f"the run has reported {view.head} as the head of its journal, which it is not"
        )


def proven(run: OpenedRun, check: Callable[[RunView], T]) -> T:
    """The result of a check of a run; a fault of a run that changes meanwhile must be found twice.

    Args:
        run: the run.
        check: raises an error if it finds a fault.

    Raises:
        RunError: as ``check`` does; of a run that is training, or has been resumed or stopped since
            the check began, if a second reading has the same fault.
    """
    before: RunError | None = None
    while True:
        state = _state(run)
        try:
            view = _view(run)
            return check(view)
        except RunError as error:
            stands_still = state[0] != "running" and _state(run) == state
            if str(error) == str(before) or stands_still:
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
