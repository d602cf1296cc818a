"""Writes the files of a run while it trains: journal, metrics, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from time import monotonic
from typing import Any

from distsgd.config.settings import TrainConfig
from distsgd.core.messages import Applied
from distsgd.core.optim import Residuals, shared_out
from distsgd.engine.events import Ended, Progress
from distsgd.engine.job import Job, Snapshot
from distsgd.errors import RunError, StorageError
from distsgd.runs import (
    Best,
    Mark,
    MetricsWriter,
    Model,
    Place,
    Resized,
    best_epoch,
    checkpoint_path,
    checkpoint_versions,
    read_if_kept,
    remove_checkpoints,
    remove_residuals,
    score_of,
    seconds_of_steps,
    superfluous,
    wanted,
    write_checkpoint,
    write_residuals,
)
from distsgd.runs.metrics import epoch_rows
from distsgd.runs.opened_run import OpenedRun
from distsgd.runs.snapshots import Snapshots
from distsgd.training.chronicle import Chronicle
from distsgd.training.logbook import Logbook, Start
from distsgd.training.measuring import Measured
from distsgd.training.results import EpochRow, Reporter

__all__ = ["Keeper"]


_LOOK_SECONDS = 1.0
"""Seconds between two checks that the run folder still exists."""

_USABLE = 2
"""How many checkpoints that a run can resume from are always kept."""

_FEW_EPOCHS, _EVERY_SECONDS = 60, 0.5
"""The first epochs all have a checkpoint; later ones at least after these seconds."""


class Keeper:
    """Writes the run folder during a training.

    Neither a full disk nor a deleted or moved folder ends a training: the user is notified, and
    what could not be written is tried again later. Only the first and the last checkpoint must be
    written.

    Args:
        run: the run.
        config: the settings of this session.
        job: the same for the runtime.
        start: where the session starts.
        reporter: notified of trouble.

    Attributes:
        chronicle: what happens beside the steps.
    """

    def __init__(
        self, run: OpenedRun, config: TrainConfig, job: Job, start: Start, reporter: Reporter
    ) -> None:
        self._run, self._config, self._job, self._reporter = run, config, job, reporter
        self._parent = run.parent
        self._logbook = Logbook(run, start, config)
        self._folder = run.folder.checkpoints
        self._metrics = MetricsWriter(run.folder.path / "metrics.jsonl")
        self._saved, self._notified = -1, False
        self._lost, self._next_look = False, 0.0
        self._best: Best = best_epoch(run.folder.path) or (-1.0, 0.0, -1)
        self._best_saved = self._best[2]
        self._epochs = (0, 0)  # how many have ended, and W's version at the end of the last
        self._not_saved: Snapshot | None = None  # of the end of an epoch
        self._best_not_saved: Snapshot | None = None
        self._saved_at = -_EVERY_SECONDS
        self._begin = 0  # of the journal
        self._waiting: Snapshot | None = None
        self._marks: dict[int, Mark] = {}  # of the checkpoints that the run can resume from
        self._residuals: dict[int, str] = {}  # of the same, by their digests
        self._note_base()
        self._passing: set[int] = set()  # versions of checkpoints within an epoch
        self.chronicle = Chronicle(self._recorded, 0.0)

    def updated(self, update: Applied) -> None:
        """Write an update to the journal."""
        if (now := monotonic()) >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._look_for_folder()
        self._if_there_is_room(partial(self._logbook.add, update))
        if self._waiting is not None and self._waiting.version == update.version:
            self.try_to_save(self._waiting)

    def resized(self, workers: int) -> None:
        """Write a new number of workers to the journal, before any of them works."""
        self._logbook.resized(workers)

    def copied(self, entry: Resized) -> None:
        """Write to the journal that another run had another number of workers here."""
        self._logbook.copied(entry)

    def _recorded(self, content: dict[str, Any]) -> int:
        """Write a record to the metrics, if there is room; returns its bytes."""
        before = self._metrics.written
        self._if_there_is_room(partial(self._metrics.write, content))
        return self._metrics.written - before

    def progress(self, event: Progress) -> None:
        """Write progress to the metrics."""
        self.chronicle.at(event.step, event.seconds)
        self._look_for_folder()
        self._if_there_is_room(self._logbook.flush)
        self._if_there_is_room(partial(self._metrics.write, {"kind": "progress", **asdict(event)}))

    def ended(self, event: Ended) -> None:
        """Write the time of the last update to the metrics."""
        content = {
            "kind": "ended", "step": event.snapshot.version,
            "examples_seen": event.examples_seen, "seconds": event.seconds,
        }  # fmt: skip
        self._if_there_is_room(partial(self._metrics.write, content))
        self.chronicle.at(event.snapshot.version, event.seconds)
        if not event.finished:
            self.chronicle.happened("stopped", "stopped on request")

    def seconds_before(self, examples: int) -> float:
        """Seconds that the run has spent on the steps of its first examples."""
        return seconds_of_steps(self._metrics.path, examples)

    def epoch(self, row: EpochRow, version: int, test: Measured) -> None:
        """Write an epoch to the metrics, and remove checkpoints that need not stay.

        Args:
            row: its metrics.
            version: of W at its end.
            test: how its W classifies the test set.
        """
        metrics = {name: value for name, value in asdict(row).items() if value is not None}
        content = {"kind": "epoch", "version": version, **metrics}
        if self._not_saved is not None:
            content["saved"] = False
        self._if_there_is_room(partial(self._metrics.write, content))
        self.chronicle.classes(row.epoch, version, test)
        score = score_of(metrics, version)
        if score is not None and score > self._best:
            self._best = score
            self._best_not_saved = self._not_saved
            if self._not_saved is None:
                self._best_saved = version
        self._epochs, self._not_saved = (row.epoch, version), None
        self._tidy()

    def save_epoch(self, snapshot: Snapshot, epoch: int) -> None:
        """Write a checkpoint of the end of an epoch, if there is room; of short epochs, only some.

        Those are the epochs of the series, and two a second. The best of the others stays in memory
        until the next checkpoint, or until the training ends.

        Args:
            snapshot: of the server.
            epoch: how many have ended.
        """
        late = monotonic() >= self._saved_at + _EVERY_SECONDS
        keep = self._config.keep_checkpoints
        if not (late or epoch <= _FEW_EPOCHS or wanted(epoch, keep)):
            self._not_saved = snapshot
            return
        self._not_saved = None
        self.try_to_save(snapshot)
        if late:
            self._if_there_is_room(self._save_best)

    def _save_best(self) -> None:
        """Write the best epoch, if it has no checkpoint and the journal has its last update.

        Raises:
            StorageError: it cannot be written; it is tried again later.
        """
        best = self._best_not_saved
        if best is None or best.version > self._logbook.version:
            return
        if best.version != self._saved:
            self._logbook.place(False)  # never ahead of the journal
            write_checkpoint(self._folder, self.model(best))
        self._best_saved, self._best_not_saved = best.version, None

    def save(self, snapshot: Snapshot, *, passing: bool = False) -> None:
        """Write a checkpoint, unless there is one of that version.

        Args:
            snapshot: of the server.
            passing: whether to remove it once the run can resume from two newer ones.

        Raises:
            StorageError: it cannot be written.
        """
        self._waiting = None
        if snapshot.version == self._saved:
            self._passing -= set() if passing else {snapshot.version}
            return
        place = self._logbook.place(snapshot.usable)  # never ahead of the journal
        known = place if snapshot.version == self._logbook.version else None
        digest = None
        try:
            if known and snapshot.residuals:
                digest = self._write_residuals(snapshot.version, snapshot.residuals)
            write_checkpoint(self._folder, replace(self.model(snapshot, known), residuals=digest))
        except StorageError:
            if self._logbook.is_lost():
                raise self._loss() from None
            raise
        self._saved, self._saved_at = snapshot.version, monotonic()
        if passing:
            self._passing.add(snapshot.version)
        if digest is not None:
            self._residuals[snapshot.version] = digest
        if snapshot.usable and known and snapshot.residuals is not None:
            self._marks[snapshot.version] = known.mark
        self._tidy()

    def start(self, snapshot: Snapshot) -> None:
        """Write the checkpoint that a session starts from.

        Raises:
            StorageError: it cannot be written.
        """
        known = checkpoint_path(self._folder, snapshot.version).exists()
        parent = self._parent
        if known and parent is not None and parent.update == snapshot.version:
            self._begin_at(parent.update, parent.mark)
            return
        residuals = shared_out(snapshot.residuals or {}, max(1, self._config.workers))
        self.save(
            replace(snapshot, residuals=residuals), passing=snapshot.version > 0 and not known
        )

    def _note_base(self) -> None:
        """The residuals with which a fork begins stay, for a replay."""
        if self._parent is not None and self._job.has_residuals:
            version = self._parent.update
            base = read_if_kept(checkpoint_path(self._folder, version))
            if base is not None and base.residuals is not None:
                self._residuals[version] = base.residuals

    def _is_base(self, version: int) -> bool:
        """Whether the whole journal, which is kept, begins at this checkpoint."""
        base = 0 if self._parent is None else self._parent.update
        return self._config.journal == "keep" and version == base

    def _begin_at(self, version: int, mark: Mark) -> None:
        """The checkpoint where the journal of a fork begins stays as it is."""
        self._saved, self._saved_at, self._marks[version] = version, monotonic(), mark

    def _write_residuals(self, version: int, residuals: Residuals) -> str:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return write_residuals(self._folder, version, residuals, self._job.dtype)

    def try_to_save(self, snapshot: Snapshot, *, passing: bool = False) -> None:
        """The same, if there is room; delayed until the journal has its last update."""
        if snapshot.version > self._logbook.version:
            self._waiting = snapshot
            self._passing |= {snapshot.version} if passing else set()
        else:
            self._if_there_is_room(partial(self.save, snapshot, passing=passing))

    def resumed(self, config: TrainConfig) -> None:
        """The run resumes after its last update, with these settings."""
        self._config = config
        self._logbook.resumed(config)

    def flush(self) -> None:
        """Hand the journal to the system.

        Raises:
            StorageError: the disk is full.
        """
        self._logbook.flush()

    def _tidy(self) -> None:
        """Remove the checkpoints, and the start of the journal, that need not stay."""
        usable = sorted(self._marks)[-_USABLE:]
        self._marks = {version: self._marks[version] for version in usable}
        if len(usable) == _USABLE and self._config.journal == "bounded":
            begin = self._marks[usable[0]]
            if (
                begin.offset > self._begin
            ):  # the journal first, so that there is always a checkpoint where it begins
                if not self._if_there_is_room(partial(self._logbook.drop_before, begin)):
                    return
                self._begin = begin.offset
        self._residuals = {
            version: digest
            for version, digest in self._residuals.items()
            if version in usable or version == self._saved or self._is_base(version)
        }
        with suppress(OSError, RunError, StorageError):
            spare = self._superfluous(set(usable))
            if self._config.journal == "keep":
                self._move_to_snapshots(spare, only_usable=len(usable) == _USABLE)
            remove_checkpoints(self._folder, spare)
            if len(usable) == _USABLE:
                remove_residuals(self._folder, self._residuals.items())
        self._passing &= set(usable)

    def _move_to_snapshots(self, spare: set[int], *, only_usable: bool) -> None:
        """Keep what is no longer needed here as snapshots, within their bound."""
        feedback = self._job.has_residuals and self._config.error_feedback
        if spare or feedback:
            snapshots = Snapshots(self._run.folder)
            if feedback and only_usable:
                snapshots.take_over_residuals(set(self._residuals))
            snapshots.take_over(spare, residuals=feedback)

    def _superfluous(self, usable: set[int]) -> set[int]:
        """The versions of checkpoints that need not stay."""
        config, epochs = self._config, self._epochs
        if config.journal == "bounded" and len(usable) < _USABLE:
            return set()  # the journal may begin at any of them
        found = set(self._passing) if len(usable) == _USABLE else set()
        if config.keep_checkpoints and epochs[0]:
            versions = checkpoint_versions(self._folder)
            found |= superfluous(versions, *epochs, config.keep_checkpoints)
            found.discard(self._best_saved)
            found = {version for version in found if not self._is_base(version)}
        return found - usable

    @property
    def version(self) -> int:
        """Updates in the journal."""
        return self._logbook.version

    @property
    def best_epoch(self) -> int | None:
        """The best epoch by the rows held out, from 1; None without any."""
        rows = epoch_rows(self._metrics.path)
        return next((row["epoch"] for row in rows if row["version"] == self._best[2]), None)

    @property
    def head(self) -> str:
        """Digest of the last line of the journal."""
        return self._logbook.head

    def close(self) -> None:
        """Close the files."""
        self._if_there_is_room(self._save_best)
        self.chronicle.close()
        self._metrics.close()
        self._logbook.close()

    def model(self, snapshot: Snapshot, place: Place | None = None) -> Model:
        """A snapshot as a checkpoint holds it."""
        return self._run.model(self._job, snapshot, place)

    def _look_for_folder(self) -> None:
        """Notify the user, once, that the files of the run are gone from its folder."""
        lost = self._logbook.is_lost()
        if lost and not self._lost:
            error = self._loss()
            self._reporter.notice(f"{error.problem}; training continues. {error.hint}.")
        self._lost = lost

    def _loss(self) -> StorageError:
        folder = self._run.folder.path
        what = "its journal" if folder.is_dir() else "the run folder"
        return StorageError(
            f"{folder}: {what} has been deleted or moved, and nothing more of this run is saved",
            "Put it back where it was before the training ends, or stop and train again",
        )

    def _if_there_is_room(self, write: Callable[[], None]) -> bool:
        """Write; returns whether it worked, and notifies the user the first time it does not."""
        try:
            write()
        except StorageError as error:
            self._look_for_folder()
            if not self._notified and not self._lost:
                self._reporter.notice(f"{error.problem}; training continues. {error.hint}.")
                self._notified = True
            return False
        return True
