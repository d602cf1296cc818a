"""Where a run that was cut short goes on: the newest checkpoint that will do, and its journal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from distsgd.api.jobs import make_job
from distsgd.api.opened_run import OpenedRun
from distsgd.api.replayer import Replayer, records_of, settings_after, start_of
from distsgd.core.position import Ledger
from distsgd.errors import RunError, UsageError
from distsgd.run.checkpoint import Model
from distsgd.run.config import TrainConfig
from distsgd.run.config_sources import AUTO, with_room
from distsgd.run.journal import Entry, Mark
from distsgd.run.journal_reader import MarkMissing
from distsgd.run.setting_values import as_type
from distsgd.run.spelling import spelling
from distsgd.runtime.job import Snapshot

__all__ = ["Recovered", "Tail", "find_tail", "settings_to_go_on"]


@dataclass(frozen=True)
class Recovered:
    """A run after the last update of its journal.

    Attributes:
        snapshot: the server.
        ledger: what has been applied.
    """

    snapshot: Snapshot
    ledger: Ledger


@dataclass(frozen=True)
class Tail:
    """A checkpoint, and all lines of the journal that are needed to go on from it.

    Attributes:
        model: the checkpoint.
        before: the settings at the first of the lines.
        entries: the lines.
        ledger: what has been applied before the first of them.
        end: where the journal ends.
    """

    model: Model
    before: TrainConfig
    entries: list[Entry]
    ledger: Ledger
    end: Mark

    @property
    def settings(self) -> TrainConfig:
        """The settings after the last line."""
        return settings_after(self.before, self.entries)

    def recovered(self, run: OpenedRun) -> Recovered:
        """The server after the last update: none is lost.

        Raises:
            JournalError: an update cannot be made anew.
        """
        replayer = Replayer(self.before, run.dataset, start_of(self.model))
        for _ in replayer.versions(self.entries):
            pass
        job = make_job(self.settings, run.dataset)
        for record in records_of(self.entries):
            self.ledger.add(job.plan, record)
        position = self.ledger.position(job.plan, job.policy)
        return Recovered(replayer.snapshot(position), self.ledger)


def find_tail(run: OpenedRun) -> Tail:
    """From the newest checkpoint that will do, with all that comes after it.

    Raises:
        RunError: there is no checkpoint that will do.
        JournalError: the journal does not hold.
    """
    problem = "it has no checkpoint that can be read"
    for model in run.checkpoints():
        tail = _tail(run, model)
        if tail is not None and _will_do(tail):
            return tail
        problem = "its checkpoints and its journal do not go together"
    raise RunError(f"{run.folder.path} cannot be gone on with: {problem}", "Train again")


def _tail(run: OpenedRun, model: Model) -> Tail | None:
    """What follows a checkpoint; None if the journal has no such place."""
    place, ledger = model.place, Ledger()
    if model.version > 0 and not _is_pure(run.origin):
        return None  # what is left over belongs to answers, not to updates
    if place is not None:
        config, begin, ledger = place.config(run.origin), place.mark, Ledger.from_json(place.ledger)
    else:
        config, begin = run.origin, Mark(run.first)
    try:
        lines = list(run.entries(begin))
    except MarkMissing:
        return None
    end = lines[-1][1] if lines else begin
    return Tail(model, config, [entry for entry, _ in lines], ledger, end)


def _is_pure(config: TrainConfig) -> bool:
    """Whether an answer depends on nothing but W: no error feedback, that is."""
    return config.compress == "none" or not config.error_feedback


def _will_do(tail: Tail) -> bool:
    """Whether all later updates can be made from a checkpoint.

    What they read must be in it, or not be older than it.
    """
    model, known = tail.model, tail.ledger.version
    records = records_of(tail.entries)
    later = records[model.version - known :]
    within = model.version <= known + len(records)
    reads = {lease.version for record in later for _, lease in record.contributions}
    return within and all(read >= model.version or read in model.reads for read in reads)


def settings_to_go_on(config: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """The settings of a run with those that are to be others from here on.

    Args:
        config: as they were.
        given: new values by name; None for the old ones.

    Raises:
        UsageError: a value cannot be used, or there are fewer epochs than before.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if "epochs" in chosen:
        chosen["epochs"] = as_type("epochs", "int", chosen["epochs"])
    if chosen.get("epochs", config.epochs) < config.epochs:
        less = spelling().given("epochs", chosen["epochs"])
        raise UsageError(
            f"{less} is fewer than the {config.epochs} of the run",
            f"Give {config.epochs} or more",
        )
    if chosen.get("workers") == AUTO:
        chosen = with_room({"servers": config.servers, **chosen})
    elif "workers" in chosen:
        chosen["elastic"] = False  # the user has said how many
    return replace(config, **chosen)
