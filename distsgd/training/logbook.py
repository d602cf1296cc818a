"""The journal of a run in training, and how far the run has come."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from distsgd.config.settings import RESUMABLE_SETTINGS, TrainConfig
from distsgd.core.messages import Applied
from distsgd.core.server import Ledger
from distsgd.engine.job import Snapshot
from distsgd.errors import StorageError
from distsgd.runs import JournalWriter, Mark, Place, Resized, Resumed
from distsgd.runs.opened_run import OpenedRun

__all__ = ["Logbook", "Start"]


@dataclass(frozen=True)
class Start:
    """The state of a run after the last update of its journal, from which a session starts.

    Attributes:
        snapshot: the server.
        ledger: the slots applied so far.
        end: where the journal ends.
        fleet: the most workers so far, of whom answers may still come; None for those that start.
    """

    snapshot: Snapshot
    ledger: Ledger
    end: Mark
    fleet: int | None = None


class Logbook:
    """Writes the journal of a run, and keeps the ledger of what it holds.

    Args:
        run: the run.
        start: where its journal ends, and what it holds.
        config: the settings from here on.
    """

    def __init__(self, run: OpenedRun, start: Start, config: TrainConfig) -> None:
        self._ledger, self._config, self._plan = start.ledger, config, run.job(config).plan
        self._journal = JournalWriter(run.folder.path, start.end)
        self._workers = max(1, config.workers)  # now
        self._fleet = max(self._workers, start.fleet or 0)  # the most since it started
        self.flush, self.drop_before = self._journal.flush, self._journal.drop_before
        self.close, self.is_lost = self._journal.close, self._journal.is_lost

    @property
    def version(self) -> int:
        """Updates in the journal."""
        return self._ledger.version

    @property
    def head(self) -> str:
        """Digest of the last line of the journal."""
        return self._journal.head

    def add(self, update: Applied) -> None:
        """Append an update.

        Raises:
            StorageError: the disk is full; the update is kept in memory until there is room.
        """
        self._ledger.add(self._plan, update)
        self._journal.add(update)

    def resumed(self, config: TrainConfig | None = None) -> None:
        """Append that the run resumes after its last update, with new settings if given."""
        self._config = config = config or self._config
        self._workers = self._fleet = max(1, config.workers)
        entry = Resumed(self.version, config.epochs, config.workers, config.servers, config.channel)
        with suppress(StorageError):  # the line is kept, and the next write reports the problem
            self._journal.resumed(entry)

    def resized(self, workers: int) -> None:
        """Append that the fleet has another number of workers from here on."""
        if workers == self._workers:
            return
        self._workers, self._fleet = workers, max(self._fleet, workers)
        with suppress(StorageError):  # as above
            self._journal.resized(Resized(workers))

    def copied(self, entry: Resized) -> None:
        """Append another number of workers that another run had here."""
        self._workers, self._fleet = entry.workers, max(self._fleet, entry.workers)
        with suppress(StorageError):  # as above
            self._journal.resized(entry)

    def place(self, usable: bool) -> Place:
        """Where the run stands now.

        Args:
            usable: see `Place`.

        Raises:
            StorageError: the journal cannot be written.
        """
        return Place(
            mark=self._journal.mark(),
            ledger=self._ledger.to_json(),
            settings={name: getattr(self._config, name) for name in RESUMABLE_SETTINGS},
            usable=usable,
            fleet=self._fleet,
        )
