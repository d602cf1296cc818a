"""Whether the lines of a journal are ones that its run can have written, for all that reads it.

Audit, replay and resume go through it before anything is computed from a line, so that no number of
a journal is believed, allocated or counted up to that the plan does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.plan import Plan
from distsgd.core.server import Ledger, UpdateCheck
from distsgd.errors import JournalError, RunError, UsageError
from distsgd.runs.checkpoint import Model, Place, resumed_settings
from distsgd.runs.journal import Entry, Mark, Record, Resized
from distsgd.runs.opened_run import OpenedRun

__all__ = ["Beginning", "JournalCheck", "beginning_of"]


@dataclass(frozen=True)
class Beginning:
    """Where in a run the lines of a journal begin.

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
            "Remove it to go on from an older one",
        ) from None
    fleet = config.workers if place.fleet is None else place.fleet
    return Beginning(config, ledger, fleet, place.mark)


class JournalCheck:
    """Goes through the lines of a journal.

    Args:
        run: the run.
        begin: where the first line is.
        places: of checkpoints, which say what the journal was when they were written.

    Attributes:
        updates: the check of the updates.
        config: the settings after the last line.
    """

    def __init__(self, run: OpenedRun, begin: Beginning, places: Iterable[Place] = ()) -> None:
        self.config = begin.config
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
            JournalError: names the first that the run cannot have written.
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
        """See that the journal reaches as far as the checkpoints say.

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
        if isinstance(entry, Record):
            self.updates.add(entry)
        elif isinstance(entry, Resized):
            self.updates.resized(entry.workers)
        else:
            self.updates.resumed(entry.version, entry.epochs, entry.workers)
            self.config = resumed_settings(self.config, entry)

    def _compare(self, mark: Mark) -> None:
        """Compare what checkpoints say of the journal up to here."""
        for place in self._places.pop(mark.lines, ()):
            version = self.updates.ledger.version
            if place.mark != mark:
                raise JournalError(
                    version, "a checkpoint that was written after it has another digest of it"
                )
            settings = {name: getattr(self.config, name) for name in place.settings}
            if place.settings != settings or place.ledger != self.updates.ledger.to_json():
                raise JournalError(
                    version, "a checkpoint that was written after it tells of other updates"
                )
