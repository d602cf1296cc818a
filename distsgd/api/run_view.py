"""A run as it was at one moment, for what checks it while it may be training.

A training writes an update to the journal before a checkpoint of it, and makes a checkpoint before
it drops the lines of the journal before that. So the checkpoints are listed before the journal is
read, and what the journal begins with is looked for until both go together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from distsgd.api.opened_run import OpenedRun
from distsgd.errors import RunError
from distsgd.run.checkpoint import Model, checkpoint_versions, latest_checkpoint
from distsgd.run.journal import Entry, Mark
from distsgd.run.journal_reader import Journal

__all__ = ["RunView", "proven"]

_TRIES = 100
"""Times that the beginning of a journal may be dropped while its checkpoint is looked for."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as it was at one moment.

    Attributes:
        running: whether it was training then.
        finished: whether it had finished.
        checkpoints: versions of W that there were checkpoints of, oldest first. The journal
            reaches as far as the newest.
        journal: the journal.
        base: the checkpoint that the journal begins with.
    """

    running: bool
    finished: bool
    checkpoints: tuple[int, ...]
    journal: Journal
    base: Model

    def lines(self) -> tuple[list[Entry], Mark]:
        """The lines of the journal, and the mark after the last.

        Raises:
            JournalError: names the first line that does not hold.
        """
        lines = list(self.journal.entries())
        return [entry for entry, _ in lines], lines[-1][1] if lines else self.journal.begin


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
        return RunView(
            running=status == "running",
            # A run that is resumed loses its report before its journal grows.
            finished=status == "finished" and folder.report() == report,
            checkpoints=known,
            journal=journal,
            base=base,
        )


def proven(run: OpenedRun, check: Callable[[RunView], T]) -> T:
    """What a check of a run comes to. A fault of a run that is training is looked for twice.

    Args:
        run: the run.
        check: raises an error, if it finds a fault.

    Raises:
        RunError: as ``check`` does; of a run that is training, if a second reading has the same
            fault.
    """
    before: RunError | None = None
    while True:
        try:
            view = _view(run)
            return check(view)
        except RunError as error:
            if str(error) == str(before) or run.folder.status() != "running":
                raise
            before = error
