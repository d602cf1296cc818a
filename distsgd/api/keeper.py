"""What a training keeps in its run folder: journal, metrics, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from distsgd.api.recovery import recover
from distsgd.api.reporter import Reporter
from distsgd.api.results import EpochRow
from distsgd.core.chaos import Chaos
from distsgd.core.initial import unpad
from distsgd.core.messages import Applied
from distsgd.data.dataset import Dataset
from distsgd.errors import StorageError
from distsgd.run.checkpoint import Model, remove_checkpoints, shaped, write_checkpoint
from distsgd.run.config import TrainConfig
from distsgd.run.folder import RunFolder
from distsgd.run.journal import JournalWriter, Resumed, read_journal
from distsgd.run.metrics import MetricsWriter
from distsgd.runtime.events import Progress
from distsgd.runtime.job import Job, Snapshot

__all__ = ["Keeper", "Task"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a session is to do.

    Attributes:
        config: the settings, as they are from here on.
        origin: as they are in the config.json of the run; its journal is chained to them.
        dataset: what is trained on.
        run: the run folder.
        trace: a file for a timeline, if one is wanted.
        chaos: faults that are to come, if any.
    """

    config: TrainConfig
    origin: TrainConfig
    dataset: Dataset
    run: RunFolder
    trace: Path | None = None
    chaos: Chaos | None = None


class Keeper:
    """Writes the run folder while training goes on.

    A full disk does not end a training: the user is told, and what could not be written is tried
    again later. Only the first checkpoint and the last have to be written.

    Args:
        task: what is trained.
        job: the same for the runtime.
        journal: where updates are written.
        reporter: told of trouble.
    """

    def __init__(self, task: Task, job: Job, journal: JournalWriter, reporter: Reporter) -> None:
        self._task, self._job, self._journal, self._reporter = task, job, journal, reporter
        self._metrics = MetricsWriter(task.run.path / "metrics.jsonl")
        self._saved, self._told = -1, False
        self._best = (-1.0, 0)

    def updated(self, update: Applied) -> None:
        """An update goes to the journal."""
        self._if_there_is_room(partial(self._journal.add, update))

    def progress(self, event: Progress) -> None:
        """Some updates go to the metrics."""
        self._if_there_is_room(self._journal.flush)
        self._if_there_is_room(partial(self._metrics.write, {"kind": "progress", **asdict(event)}))

    def epoch(self, row: EpochRow, version: int) -> None:
        """An epoch goes to the metrics; checkpoints that are not to be kept are removed.

        Args:
            row: what is known of it.
            version: of W at its end.
        """
        self._if_there_is_room(partial(self._metrics.write, {"kind": "epoch", **asdict(row)}))
        self._best = max(self._best, (row.test_accuracy, version))
        if newest := self._task.config.keep_checkpoints:
            with suppress(OSError):
                remove_checkpoints(self._task.run.checkpoints, newest, {0, self._best[1]})

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint, unless there is one of that version.

        Raises:
            StorageError: it cannot be written.
        """
        if snapshot.version != self._saved:
            self._journal.sync()  # a checkpoint is never ahead of the journal
            write_checkpoint(self._task.run.checkpoints, self.model(snapshot))
            self._saved = snapshot.version

    def try_to_save(self, snapshot: Snapshot) -> None:
        """The same, if there is room."""
        self._if_there_is_room(partial(self.save, snapshot))

    def recovered(self) -> Snapshot:
        """The server after the last update of the journal, from which the run goes on."""
        self._journal.flush()
        task = self._task
        digest = task.dataset.manifest.digest
        entries = list(read_journal(task.run.path, task.origin, digest))
        start = recover(task.run, task.origin, task.dataset, entries)
        config = task.config
        self._journal.resumed(Resumed(start.version, config.epochs, max(1, config.workers)))
        return start

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._journal.close()

    def model(self, snapshot: Snapshot) -> Model:
        """A snapshot as it is kept."""
        job, manifest = self._job, self._task.dataset.manifest
        return Model(
            weights=unpad(snapshot.weights, job.classes, job.features),
            state=shaped(snapshot.state, job.classes, job.features),
            left_over=shaped(snapshot.left_over, job.classes, job.features),
            version=snapshot.version,
            loss=job.loss,
            classes=manifest.classes,
            shape=manifest.shape,
            preprocessing=job.preprocessing,
        )

    def _if_there_is_room(self, write: Callable[[], None]) -> None:
        try:
            write()
        except StorageError as error:
            if not self._told:
                self._reporter.notice(f"{error.problem}; training goes on. {error.hint}.")
            self._told = True
