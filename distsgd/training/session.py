"""One training from its first update to its last: the runtime's events become a run folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import asdict, replace

from distsgd.config.jobs import make_job
from distsgd.engine.events import (
    Connected,
    Ended,
    EpochEnded,
    Event,
    Notice,
    Progress,
    Saved,
    Statistics,
    Updated,
    UpdateSampled,
)
from distsgd.engine.job import Snapshot
from distsgd.errors import (
    DivergedError,
    RunError,
    RuntimeFailure,
    ServerLost,
    StorageError,
    VerificationError,
)
from distsgd.on_ray.capacity import FollowedRoom
from distsgd.proof.recovery import Stopped
from distsgd.proof.verifier import Verifier
from distsgd.runs.checkpoint import Model, weights_sha256
from distsgd.runs.folder import WantedWorkers, add_kernel
from distsgd.runs.metrics import write_trace_file
from distsgd.training.chaos import ChaosWatch
from distsgd.training.interrupts import Stop
from distsgd.training.keeper import Keeper, Logbook, Task
from distsgd.training.measuring import Background, Measured, measure_split
from distsgd.training.results import EpochRow, Reporter, TrainResult

__all__ = ["Session"]

_MOST_LOSSES = 3
"""Servers that may die one after the other without an update between."""

_MEASURING_SECONDS = 1.0
"""For how long epochs that have ended are still measured once a stop has been asked for."""


class _Resized(Exception):
    """The user, or the cluster, wants another number of workers, and they have residuals."""

    def __init__(self, workers: int) -> None:
        self.workers, self.problem = workers, f"{workers} workers from here on"
        super().__init__(self.problem)


class Session:
    """Follows the events of the runtime and keeps the run folder.

    Args:
        task: what to do.
        start: where to begin.
        logbook: where updates are written.
        reporter: told how training goes.
        stop: asked whether to end early.
    """

    def __init__(
        self,
        task: Task,
        start: Snapshot,
        logbook: Logbook,
        reporter: Reporter,
        stop: Stop,
    ) -> None:
        self._task, self._config = task, task.config
        self._dataset, self._run = task.run.dataset, task.run.folder
        self._start, self._reporter, self._stop = start, reporter, stop
        self._job = replace(
            make_job(task.config, self._dataset),
            policy=task.run.origin.policy(),  # the number of replicas is that of the beginning
            trace=task.trace is not None,
        )
        self._keeper = Keeper(task, self._job, logbook, reporter)
        self._background = Background()
        self._watch: ChaosWatch | None = None
        if task.chaos is not None:
            self._watch = ChaosWatch(task.chaos, task.run, self._job.plan, start.version)
            self._job = replace(self._job, chaos=task.chaos, tally=str(self._watch.tally))
        self._verifier = Verifier(task.config, self._dataset, self._job)
        self._channel = "inline" if self._in_one_process(start) else "none"
        self._said, config = WantedWorkers(self._run), task.config
        self._wanted = FollowedRoom(self._said, config.servers, config.elastic)
        self._seconds = self._seconds_before = self._keeper.seconds_before(_examples(start))
        self._began, self._connected = 0.0, False  # when steps began
        self._last_seconds = 0.0  # of steps, by the last generation of processes
        self._losses = 0
        self._stopped: float | None = None  # when a stop was first seen

    def run(self, began: float) -> TrainResult:
        """Train to the end, or until asked to stop.

        Args:
            began: when the user's command began, by `time.perf_counter`.
        """
        with ExitStack() as stack:
            for opened in (self._keeper, self._background, self._watch):
                if opened is not None:
                    stack.callback(opened.close)
            self._keeper.start(self._start)
            self._reporter.started(self._config, self._run.path, self._job.plan.total_steps)
            stack.enter_context(self._processes())
            self._began = time.perf_counter()
            ended = self._until_the_end()
        self._reporter.ended()
        if self._task.trace is not None:
            write_trace_file(self._task.trace, ended.tracks)
        result = self._result(ended, began)
        self._run.write("report.json", asdict(result))
        return result

    def _processes(self) -> AbstractContextManager[None]:
        """One Ray for all that happens, also when a server dies."""
        if self._in_one_process(self._start):
            return nullcontext()
        if self._task.address is not None:
            from distsgd.cluster.connection import joined_cluster

            return joined_cluster(self._task.address)
        from distsgd.on_ray.session import ray_session

        return ray_session(cpus=self._config.workers + self._config.servers)

    def _until_the_end(self) -> Ended:
        """Follow the events; when a server dies, go on from where the journal ends."""
        start, version = self._start, -1
        while True:
            events = self._events(start)
            try:
                return self._follow(events, _examples(start))
            except (ServerLost, _Resized) as error:
                if isinstance(error, _Resized):
                    self._config = replace(self._config, workers=error.workers)
                    self._keeper.new_fleet(self._config)
                else:
                    self._losses = self._losses + 1 if start.version == version else 0
                    if self._losses == _MOST_LOSSES:
                        raise
                    version = start.version
                try:
                    start = self._keeper.recovered(self._stop)
                except Stopped as stopped:
                    return self._stopped_at(stopped.start, error.problem)
                self._seconds = max(self._seconds, self._keeper.seconds_before(_examples(start)))
                self._said.again()
                self._verifier.went_back()
                self._reporter.notice(f"{error.problem}; going on after update {start.version}")
            except RuntimeFailure as error:
                named = f"`distsgd resume {self._run.path}`"
                hint = error.hint.replace("`distsgd resume`", named)
                raise RuntimeFailure(error.problem, hint) from error
            finally:
                events.close()  # type: ignore[attr-defined]

    def _stopped_at(self, start: Snapshot, problem: str) -> Ended:
        """The end of a session that was stopped before W was recovered, with W of a checkpoint."""
        self._reporter.notice(
            f"{problem}; stopped while its updates were computed anew: W is that after "
            f"update {start.version}, and a resume goes on after the last update"
        )
        seen = _examples(start)
        return Ended(start, self._seconds, seen, False, Statistics())

    def _in_one_process(self, start: Snapshot) -> bool:
        """Whether no Ray is needed: so it was wished, or nothing is left to do."""
        position = start.position
        left = position is None or position.holes or position.step < self._job.plan.total_steps
        return self._config.workers == 0 or not left

    def _events(self, start: Snapshot) -> Iterator[Event]:
        if self._in_one_process(start):
            from distsgd.engine.inline import train_inline

            return train_inline(self._job, start, self._stop)
        from distsgd.on_ray.driver import train_on_ray

        config, watch = self._config, self._watch
        return train_on_ray(
            self._job, start, config.workers, self._stop, config.channel, self._workers_wanted,
            config.wait_seconds, watch.havoc() if watch else None,
        )  # fmt: skip

    def _workers_wanted(self) -> int | None:
        """How many workers, if that may have changed; the journal has it before they come.

        Raises:
            _Resized: they are to share residuals out among them, so all are started anew.
        """
        wanted = self._wanted()
        if wanted and self._job.has_residuals and wanted != self._config.workers:
            raise _Resized(wanted)
        if wanted is not None:
            self._keeper.resized(wanted)
        return wanted

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
                if not self._connected:
                    self._connected, self._began = True, time.perf_counter()
                if self._task.address is not None or len(set(event.hosts)) > 1:
                    self._reporter.notice(event.told)
            elif isinstance(event, Notice):
                self._reporter.notice(event.text)
                if event.kernel:
                    with suppress(StorageError):  # a full disk does not end a training
                        add_kernel(self._run, event.kernel)
            elif isinstance(event, Updated):
                self._keeper.updated(event.update)
                if self._watch is not None:
                    self._watch.updated()
            elif isinstance(event, UpdateSampled):
                self._verify(event)
            elif isinstance(event, Progress):
                self._seconds = before + event.seconds
                self._progress(
                    replace(
                        event, seconds=self._seconds, examples_seen=seen + event.examples_seen,
                        examples_per_second=self._rate(seen + event.examples_seen, self._seconds),
                    )
                )  # fmt: skip
            elif isinstance(event, EpochEnded):
                self._epoch_ended(replace(event, seconds=before + event.seconds))
            elif isinstance(event, Saved):
                self._keeper.try_to_save(event.snapshot, passing=True)
            elif isinstance(event, Ended):
                self._last_seconds = event.seconds
                return self._ended(
                    replace(
                        event, seconds=before + event.seconds,
                        examples_seen=seen + event.examples_seen,
                    )
                )  # fmt: skip
        raise RunError("training ended without a last word", "This is a fault; please report it")

    def _verify(self, event: UpdateSampled) -> None:
        """Recompute an update; if that does not hold, W of before it is kept."""
        try:
            self._background.run(lambda: self._verifier.check(event))
        except VerificationError:
            sampled = event.sampled
            before = Snapshot(sampled.update.version - 1, sampled.before, sampled.state)
            self._keeper.try_to_save(before)
            raise

    def _progress(self, event: Progress) -> None:
        self._keeper.progress(event)
        self._reporter.progress(event)

    def _rate(self, examples: int, seconds: float) -> float:
        """Examples a second of this session, from those of the whole run and its seconds."""
        spent = seconds - self._seconds_before
        return (examples - _examples(self._start)) / spent if spent > 0 else 0.0

    def _ended(self, event: Ended) -> Ended:
        if event.diverged is not None:
            found = event.diverged
            raise DivergedError(found.step, found.loss, found.learning_rate)
        self._keeper.save(event.snapshot)
        self._keeper.ended(event)
        return event

    def _out_of_time(self) -> bool:
        """Whether a stop was asked for so long ago that nothing more is measured."""
        if self._stopped is None and self._stop():
            self._stopped = time.monotonic()
        return self._stopped is not None and time.monotonic() > self._stopped + _MEASURING_SECONDS

    def _epoch_ended(self, event: EpochEnded) -> None:
        if self._out_of_time():
            return
        self._keeper.save_epoch(event.snapshot, event.epoch + 1)
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
            model=config.model,
            workers=config.workers,
            servers=config.servers,
            channel=self._channel,
            batch_size=config.batch_size,
            epochs=config.epochs,
            seed=config.seed,
            sampling=config.sampling,
            consistency=config.consistency,
            gradient_ages={str(k): n for k, n in sorted(ended.statistics.ages.items())},
            dropped=ended.statistics.dropped,
            requeued=ended.statistics.requeued,
            waiting_seconds=_by_worker(ended.statistics.waiting_seconds),
            answering_seconds=_by_worker(ended.statistics.answering_seconds),
            bytes_per_update=ended.statistics.bytes_pushed / max(1, ended.statistics.updates),
            server_busy_share=ended.statistics.busy_seconds / (self._last_seconds or 1.0),
            steps=ended.snapshot.version,
            examples_seen=ended.examples_seen,
            train_loss=train_set.loss,
            train_accuracy=train_set.accuracy,
            test_loss=test_set.loss,
            test_accuracy=test_set.accuracy,
            train_seconds=ended.seconds,
            wall_seconds=time.perf_counter() - began,
            startup_seconds=self._began - began,
            step_seconds=ended.seconds - self._seconds_before,
            step_examples=max(0, ended.examples_seen - _examples(self._start)),
            examples_per_second=self._rate(ended.examples_seen, ended.seconds),
            weights_sha256=weights_sha256(model.weights),
            journal_head=self._keeper.head,
            chaos=self._watch.report() if self._watch is not None else None,
            verified=(self._verifier.summary(ended.statistics.let_pass) if config.verify else None),
        )


def _by_worker(seconds: dict[int, float]) -> dict[str, float]:
    return {str(worker): seconds[worker] for worker in sorted(seconds)}


def _examples(start: Snapshot) -> int:
    """How many examples have been used before."""
    return start.position.examples_seen if start.position else 0
