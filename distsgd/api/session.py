"""One training from its first update to its last: the runtime's events become a run folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, replace

from distsgd.api.background import Background
from distsgd.api.jobs import make_job
from distsgd.api.keeper import Keeper, Task
from distsgd.api.measuring import Measured, measure_split
from distsgd.api.reporter import Reporter
from distsgd.api.results import EpochRow, TrainResult
from distsgd.api.stop_signals import StopSignals
from distsgd.api.verifier import Verifier
from distsgd.errors import DistsgdError, DivergedError, RunError, ServerLost, VerificationError
from distsgd.run.checkpoint import Model, weights_sha256
from distsgd.run.journal import JournalWriter
from distsgd.run.trace_file import write_trace_file
from distsgd.run.wanted_workers import WantedWorkers
from distsgd.runtime.events import (
    Connected,
    Ended,
    EpochEnded,
    Event,
    Notice,
    Progress,
    Updated,
    Witnessed,
)
from distsgd.runtime.job import Snapshot

__all__ = ["Session"]

_MOST_LOSSES = 3
"""Servers that may die one after the other without an update between."""


class Session:
    """Follows the events of the runtime and keeps the run folder.

    Args:
        task: what to do.
        start: where to begin.
        journal: where updates are written.
        reporter: told how training goes.
        signals: whether to stop.
    """

    def __init__(
        self,
        task: Task,
        start: Snapshot,
        journal: JournalWriter,
        reporter: Reporter,
        signals: StopSignals,
    ) -> None:
        self._task, self._config = task, task.config
        self._dataset, self._run = task.dataset, task.run
        self._start, self._reporter, self._signals = start, reporter, signals
        self._job = replace(make_job(task.config, task.dataset), trace=task.trace is not None)
        self._keeper = Keeper(task, self._job, journal, reporter)
        self._background = Background()
        self._verifier = Verifier(task.config, task.dataset, self._job)
        self._channel = "inline"
        self._wanted = WantedWorkers(task.run)
        self._seconds, self._seen_before = 0.0, _examples(start)
        self._losses = 0

    def run(self, began: float) -> TrainResult:
        """Train to the end, or until a signal comes.

        Args:
            began: when the user's command began, by `time.perf_counter`.
        """
        self._keeper.save(self._start)
        self._reporter.started(self._config, self._run.path, self._job.plan.total_steps)
        with ExitStack() as stack:
            for opened in (self._keeper, self._background):
                stack.callback(opened.close)
            stack.enter_context(self._processes())
            ended = self._until_the_end()
        self._reporter.ended()
        if self._task.trace is not None:
            write_trace_file(self._task.trace, ended.tracks)
        result = self._result(ended, began)
        self._run.write("report.json", asdict(result))
        return result

    def failed(self, status: str, error: BaseException) -> None:
        """Leave word in the run folder, if the disk still takes it."""
        try:
            self._run.write("report.json", {"status": status, "problem": str(error)})
        except DistsgdError:
            return

    def _processes(self) -> AbstractContextManager[None]:
        """One Ray for all that happens, also when a server dies."""
        if self._config.workers == 0:
            return nullcontext()
        from distsgd.runtime.ray_session import ray_session

        return ray_session(cpus=self._config.workers + self._config.servers)

    def _until_the_end(self) -> Ended:
        """Follow the events; when a server dies, go on from where the journal ends."""
        start, version = self._start, -1
        while True:
            events = self._events(start)
            try:
                return self._follow(events, _examples(start))
            except ServerLost as error:
                self._losses = self._losses + 1 if start.version == version else 0
                if self._losses == _MOST_LOSSES:
                    raise
                version = start.version
                start = self._keeper.recovered()
                self._verifier.went_back()
                self._reporter.notice(f"{error.problem}; going on after update {start.version}")
            finally:
                events.close()  # type: ignore[attr-defined]

    def _events(self, start: Snapshot) -> Iterator[Event]:
        if self._config.workers == 0:
            from distsgd.runtime.inline import train_inline

            return train_inline(self._job, start, self._signals)
        from distsgd.runtime.ray_runtime import train_on_ray

        config = self._config
        return train_on_ray(
            self._job, start, config.workers, self._signals, config.channel, self._wanted
        )

    def _follow(self, events: Iterator[Event], seen: int) -> Ended:
        """Follow events to the last.

        Args:
            events: of one generation of processes.
            seen: examples that had been used before.
        """
        before = self._seconds
        for event in events:
            if isinstance(event, Connected):
                self._channel = "+".join(sorted(set(event.channels)))
            elif isinstance(event, Notice):
                self._reporter.notice(event.text)
            elif isinstance(event, Updated):
                self._keeper.updated(event.update)
            elif isinstance(event, Witnessed):
                self._witnessed(event)
            elif isinstance(event, Progress):
                self._seconds = before + event.seconds
                self._progress(
                    replace(event, seconds=self._seconds, examples_seen=seen + event.examples_seen)
                )
            elif isinstance(event, EpochEnded):
                self._epoch_ended(replace(event, seconds=before + event.seconds))
            else:
                return self._ended(
                    replace(
                        event, seconds=before + event.seconds,
                        examples_seen=seen + event.examples_seen,
                    )
                )  # fmt: skip
        raise RunError("training ended without a last word", "This is a fault; please report it")

    def _witnessed(self, event: Witnessed) -> None:
        """Recompute an update; if that does not hold, W of before it is kept."""
        try:
            self._background.run(lambda: self._verifier.check(event))
        except VerificationError:
            evidence = event.evidence
            before = Snapshot(evidence.update.version - 1, evidence.before, evidence.state)
            self._keeper.try_to_save(before)
            raise

    def _progress(self, event: Progress) -> None:
        self._keeper.progress(event)
        self._reporter.progress(event)

    def _ended(self, event: Ended) -> Ended:
        if event.diverged is not None:
            found = event.diverged
            raise DivergedError(found.step, found.loss, found.learning_rate)
        self._keeper.save(event.snapshot)
        return event

    def _epoch_ended(self, event: EpochEnded) -> None:
        self._keeper.try_to_save(event.snapshot)
        model = self._keeper.model(event.snapshot)
        test = self._background.run(lambda: self._measure(model, "test"))
        row = EpochRow(
            epoch=event.epoch + 1,
            train_loss=event.loss + test.penalty,
            train_accuracy=event.accuracy,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            seconds=event.seconds,
        )
        self._keeper.epoch(row, event.snapshot.version)
        self._reporter.epoch(row)

    def _measure(self, model: Model, split: str) -> Measured:
        return measure_split(model, self._dataset, split, self._job.regularization)

    def _result(self, ended: Ended, began: float) -> TrainResult:
        model = self._keeper.model(ended.snapshot)
        train_set, test_set = self._measure(model, "train"), self._measure(model, "test")
        config = self._config
        return TrainResult(
            run_dir=str(self._run.path),
            status="finished" if ended.finished else "interrupted",
            dataset=config.dataset,
            loss=config.loss,
            workers=config.workers,
            servers=config.servers,
            channel=self._channel,
            batch_size=config.batch_size,
            epochs=config.epochs,
            seed=config.seed,
            sampling=config.sampling,
            consistency=config.consistency,
            staleness={str(k): n for k, n in sorted(ended.statistics.staleness.items())},
            dropped=ended.statistics.dropped,
            requeued=ended.statistics.requeued,
            waiting_seconds={str(k): s for k, s in ended.statistics.waiting_seconds.items()},
            bytes_per_update=ended.statistics.bytes_pushed / max(1, ended.statistics.updates),
            server_busy_share=ended.statistics.busy_seconds / (ended.seconds or 1.0),
            steps=ended.snapshot.version,
            examples_seen=ended.examples_seen,
            train_loss=train_set.loss,
            train_accuracy=train_set.accuracy,
            test_loss=test_set.loss,
            test_accuracy=test_set.accuracy,
            train_seconds=ended.seconds,
            wall_seconds=time.perf_counter() - began,
            examples_per_second=(ended.examples_seen - self._seen_before) / (ended.seconds or 1.0),
            weights_sha256=weights_sha256(model.weights),
            verified=self._verifier.summary() if config.verify else None,
        )


def _examples(start: Snapshot) -> int:
    """How many examples have been used before."""
    return sum(start.position.examples.values()) if start.position else 0
