"""Where a run that was cut short goes on: the newest checkpoint that will do, and its journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distsgd.api.replayer import Replayer, records_of
from distsgd.core.initial import pad
from distsgd.data.dataset import Dataset
from distsgd.errors import RunError, UsageError
from distsgd.run.checkpoint import Model, read_checkpoint
from distsgd.run.config import TrainConfig
from distsgd.run.config_sources import AUTO, with_room
from distsgd.run.folder import RunFolder
from distsgd.run.journal import Entry, Record
from distsgd.runtime.job import Snapshot

__all__ = ["recover", "settings_to_go_on"]


def recover(
    folder: RunFolder, config: TrainConfig, dataset: Dataset, entries: Sequence[Entry]
) -> Snapshot:
    """The server after the last update of a journal: no update is lost.

    Args:
        folder: the run folder.
        config: its settings, as in its config.json.
        dataset: what it is trained on.
        entries: all lines of its journal.

    Raises:
        RunError: there is no checkpoint that will do.
        JournalError: the journal cannot be made anew.
    """
    start = _start(folder, config, records_of(entries))
    replayer = Replayer(config, dataset, start)
    for _ in replayer.versions(entries):
        pass
    return replayer.snapshot(entries)


def _start(folder: RunFolder, config: TrainConfig, records: list[Record]) -> Snapshot:
    """The newest checkpoint from which all later updates can be made.

    What they read must not be older than it; and what is left over from compression belongs to
    answers, not to updates, and is made anew from the beginning.
    """
    problem = "it has no checkpoint"
    for path in sorted(folder.checkpoints.glob("step-*.npz"), reverse=True):
        try:
            model = read_checkpoint(path)
        except RunError as error:
            problem = error.problem
            continue
        later = records[model.version :]
        reads = [lease.version for record in later for _, lease in record.contributions]
        within = model.version <= len(records) and min(reads, default=len(records)) >= model.version
        if within and (config.compress == "none" or model.version == 0):
            return _snapshot(model)
    raise RunError(f"{folder.path} cannot be gone on with: {problem}", "Train again")


def _snapshot(model: Model) -> Snapshot:
    state = {name: pad(array) for name, array in model.state.items()}
    return Snapshot(model.version, pad(model.weights), state)


def settings_to_go_on(config: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """The settings of a run with those that are to be others from here on.

    Args:
        config: as they were.
        given: new values by name; None for the old ones.

    Raises:
        UsageError: a value cannot be used, or there are fewer epochs than before.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen.get("epochs", config.epochs) < config.epochs:
        raise UsageError(
            f"--epochs {chosen['epochs']} are fewer than the run's {config.epochs}",
            f"Give {config.epochs} or more",
        )
    if chosen.get("workers") == AUTO:
        chosen = with_room({"servers": config.servers, **chosen})
    elif "workers" in chosen:
        chosen["elastic"] = False  # the user has said how many
    return replace(config, **chosen)
