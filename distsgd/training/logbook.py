"""What is written of every update: the journal, and beside it where the run stands."""

from __future__ import annotations

from contextlib import suppress

from distsgd.config.settings import TrainConfig
from distsgd.core.messages import Applied
from distsgd.core.plan import Plan
from distsgd.core.server.position import Ledger
from distsgd.errors import StorageError
from distsgd.runs.folder import RunFolder
from distsgd.runs.journal import JournalWriter, Mark, Resized, Resumed
from distsgd.runs.place import GOES_ON_WITH, Place

__all__ = ["Logbook"]


class Logbook:
    """The journal of a run that is training.

    Args:
        folder: the run folder.
        end: where its journal ends.
        ledger: what has been applied until there.
        config: the settings from here on.
        plan: the slots of each step.
    """

    def __init__(
        self, folder: RunFolder, end: Mark, ledger: Ledger, config: TrainConfig, plan: Plan
    ) -> None:
        self._ledger, self._config, self._plan = ledger, config, plan
        self._journal = JournalWriter(folder.path, end)
        self._workers = self._fleet = max(1, config.workers)  # now, and the most since it began
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
        """The next update.

        Raises:
            StorageError: the disk is full; the update is kept until it has room.
        """
        self._ledger.add(self._plan, update)
        self._journal.add(update)

    def new_fleet(self, config: TrainConfig) -> None:
        """Another fleet is to go on; the settings are these from here on."""
        self._config = config

    def gone_on(self) -> None:
        """The run is gone on with, from its last update."""
        config = self._config
        self._workers = self._fleet = max(1, config.workers)
        entry = Resumed(self.version, config.epochs, config.workers, config.servers, config.channel)
        try:
            self._journal.resumed(entry)
        except StorageError:
            return  # it is kept, and who writes next hears of it

    def resized(self, workers: int) -> None:
        """The fleet is to have so many workers from here on."""
        if workers == self._workers:
            return
        self._workers, self._fleet = workers, max(self._fleet, workers)
        with suppress(StorageError):  # as above
            self._journal.resized(Resized(workers))

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
            settings={name: getattr(self._config, name) for name in GOES_ON_WITH},
            usable=usable,
            fleet=self._fleet,
        )
