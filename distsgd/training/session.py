"""One session of training: the events of the processes become a run folder and a result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distsgd.config.settings import TrainConfig
from distsgd.engine.events import (
    Connected,
    Ended,
    EpochEnded,
    Event,
    FleetReport,
    Happened,
    Notice,
    Progress,
    Saved,
    Statistics,
    Updated,
    UpdateSampled,
)
from distsgd.engine.job import Snapshot
from distsgd.errors import DivergedError, ProcessLost, RunError, RuntimeFailure, StorageError
from distsgd.runs import Model, add_kernel, weights_sha256
from distsgd.runs.opened_run import OpenedRun
from distsgd.runs.origin import Origin
from distsgd.training.early_stopping import Patience, patience_of, still_falling
from distsgd.training.hooks import Context, Hook
from distsgd.training.interrupts import Stop
from distsgd.training.keeper import Keeper
from distsgd.training.limits import exceeded_bound
from distsgd.training.logbook import Start
from distsgd.training.measuring import Background, Measured, measure_split
from distsgd.training.processes import NeedsRestart, Processes
from distsgd.training.recorded_order import RecordedOrder, RecordEnds
from distsgd.training.recovery import Stopped, find_tail
from distsgd.training.results import EpochRow, Reporter, Stages, TrainResult

if TYPE_CHECKING:
    from distsgd.on_ray.chaos_kills import ChaosKills

__all__ = ["Session", "Task"]

_MOST_LOSSES = 3
"""Servers that may die one after the other without an update between."""

_OF_UPDATES = (Updated, UpdateSampled, Progress, EpochEnded, Saved)
"""Events of updates, which do not count after the epoch that ends a run early."""

_MEASURING_SECONDS = 1.0
"""For how long epochs that have ended are still measured once a stop has been asked for."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a session does.

    Attributes:
        config: the settings of this session.
        run: the run.
        resumes: whether the run resumes, rather than starts.
        address: of the Ray cluster to train on; None for a Ray of our own.
        hooks: features that take part.
        origin: where it comes from.
        recorded: the order of updates that it follows first, of a fork; None for its own.
    """

    config: TrainConfig
    run: OpenedRun
    resumes: bool = False
    address: str | None = None
    hooks: Sequence[Hook] = ()
    origin: Origin = field(default_factory=Origin)
    recorded: RecordedOrder | None = None


class Session:
    """Follows the events of the processes and keeps the run folder.

    Args:
        task: what to do.
        start: where to start.
        reporter: notified of progress.
        stop: asked whether to end early.
    """

    def __init__(self, task: Task, start: Start, reporter: Reporter, stop: Stop) -> None:
        self._task, self._config, self._hooks = task, task.config, task.hooks
        self._dataset, self._run = task.run.dataset, task.run.folder
        self._start, self._reporter, self._stop = start.snapshot, reporter, stop
        # The number of replicas is that of the start of the run.
        self._job = replace(task.run.job(task.config), policy=task.run.origin.policy())
        self._keeper = Keeper(task.run, task.config, self._job, start, reporter)
        self._background = Background()
        self._processes = Processes(task.config, self._run, task.address, self._keeper.resized)
        self._recorded = task.recorded
        in_one_process = self._processes.in_one_process(self._job, self._start)
        self._channel = "inline" if in_one_process or self._recorded else "none"
        self._stack = ExitStack()
        self._seconds = self._keeper.seconds_before(_examples(self._start))
        self._seconds_before = self._seconds
        self._stages: Stages
        self._last_seconds = 0.0  # of steps, by the last generation of processes
        self._losses = 0
        self._stopped: float | None = None  # when a stop was first seen
        self._patience = Patience(0)
        self._early: Ended | None = None  # the end, once patience has run out
        self._reason: str | None = None
        self._seen = 0  # examples used so far
        self._train_losses: list[float] = []  # of the epochs that this session has ended

    def run(self, stages: Stages) -> TrainResult:
        """Train to the end, or until asked to stop.

        Args:
            stages: those of the start, of which the first began with the user's command.
        """
        self._stages = stages
        with self._stack as stack:
            stack.callback(self._keeper.close)
            stack.callback(self._background.close)
            if self._task.resumes:
                self._keeper.resumed(self._config)
            self._begin()
            metrics, version = self._run.path / "metrics.jsonl", self._start.version
            self._patience = patience_of(self._config.patience, metrics, version)
            context = Context(self._task.run, self._start.version, self._keeper.try_to_save)
            for hook in self._hooks:
                self._job = hook.prepare(self._job, context)
                stack.callback(hook.close)
            self._keeper.start(self._start)
            self._reporter.started(self._config, self._run.path, self._job.plan.total_steps)
            if self._patience.exhausted:  # it was killed between its last update and its end
                seen = _examples(self._start)
                self._end_early(Ended(self._start, self._seconds, seen, True, Statistics()))
            elif self._recorded or self._processes.in_one_process(self._job, self._start):
                stages.end()
            else:
                stages.enter("ray")
                stack.enter_context(self._processes.session())
                stages.enter("workers")
            ended = self._until_the_end()
            stages.end()  # if it was stopped before
        self._reporter.ended()
        self._note_loss()
        for hook in self._hooks:
            hook.ended(ended)
        result = self._result(ended)
        self._run.write("report.json", asdict(result))
        return result

    def _begin(self) -> None:
        """Keep that a session starts."""
        version, task = self._start.version, self._task
        chronicle, workers = self._keeper.chronicle, self._config.workers
        chronicle.at(version, self._seconds)
        planned = self._job.updates
        epochs, resumes = self._config.epochs, task.resumes
        chronicle.session(task.origin, version, workers, planned, epochs, resumed=resumes)

    def _until_the_end(self) -> Ended:
        """Follow the events; after the death of a server, restart from where the journal ends."""
        start, version = self._start, -1
        while self._early is None:
            events = self._events(start)
            try:
                return self._follow(events, _examples(start))
            except RecordEnds as end:
                start = self._after_the_record(end)
            except (ProcessLost, NeedsRestart) as error:
                if self._early is not None:
                    break
                kind = "scaled" if isinstance(error, NeedsRestart) else "death"
                self._keeper.chronicle.happened(kind, error.problem)
                if isinstance(error, NeedsRestart):
                    self._config = replace(self._config, workers=error.workers)
                else:
                    self._losses = self._losses + 1 if start.version == version else 0
                    if self._losses == _MOST_LOSSES:
                        raise
                    version = start.version
                try:
                    start = self._recovered()
                except Stopped as stopped:
                    return self._stopped_at(stopped.start, error.problem)
                self._reporter.notice(f"{error.problem}; resuming after update {start.version}")
            except RuntimeFailure as error:
                named = f"`distsgd resume {self._run.path}`"
                hint = error.hint.replace("`distsgd resume`", named)
                raise RuntimeFailure(error.problem, hint) from error
            finally:
                events.close()  # type: ignore[attr-defined]
        return self._ended(self._early)

    def _events(self, start: Snapshot) -> Iterator[Event]:
        """Those of a generation of processes, or of the recorded order."""
        if self._recorded is None:
            return self._processes.events(self._job, start, self._should_stop, self._process_faults)
        return self._recorded.events(
            self._config, self._job, start, self._should_stop, self._keeper.copied
        )

    def _after_the_record(self, end: RecordEnds) -> Snapshot:
        """Go on as the parent of a fork did when it was resumed, or else by processes of one's own.

        Returns:
            the server there.
        """
        task, recorded = self._task, self._recorded
        assert recorded is not None
        if end.resumed is not None:
            self._config = recorded.resumed(self._config, end.resumed)
            now = task.run.job(self._config)
            self._job = replace(self._job, plan=now.plan, schedule=now.schedule)
        else:
            self._recorded = None
            text = f"the recorded order ends after update {self._keeper.version}"
            self._reporter.notice(f"{text}; going on from there")
            self._keeper.chronicle.happened("notice", text)
        given = self._config, self._run, task.address, self._keeper.resized
        self._processes = Processes(*given)
        start = self._recovered()
        if self._recorded is None and not self._processes.in_one_process(self._job, start):
            self._stack.enter_context(self._processes.session())
        return start

    def _should_stop(self) -> bool:
        return self._early is not None or self._stop()

    def _end_early(self, ended: Ended) -> None:
        """Let the run end here, although epochs are left.

        The processes may make some more updates before they stop. These do not count: so a run has
        the same end with any fleet.
        """
        self._early, self._reason = ended, self._patience.reason(self._keeper.best_epoch)
        self._reporter.notice(self._reason)

    def _process_faults(self) -> ChaosKills | None:
        return next(filter(None, (hook.process_faults() for hook in self._hooks)), None)

    def _recovered(self) -> Snapshot:
        """The server after the last update of the journal, from which the next processes start.

        Raises:
            Stopped: a stop was asked for before it was computed; the run folder is as it was.
        """
        self._keeper.flush()
        tail = find_tail(self._task.run, self._reporter.notice)
        start = tail.start(self._task.run, self._stop).snapshot
        self._keeper.resumed(self._config)
        self._seconds = max(self._seconds, self._keeper.seconds_before(_examples(start)))
        self._processes.restart(self._config.workers)
        for hook in self._hooks:
            hook.restarted()
        return start

    def _stopped_at(self, start: Snapshot, problem: str) -> Ended:
        """The end of a session that was stopped before W was recovered, with W of a checkpoint."""
        self._reporter.notice(
            f"{problem}; stopped while its updates were recomputed: W is that after "
            f"update {start.version}, and a resume continues after the last update"
        )
        seen = _examples(start)
        return Ended(start, self._seconds, seen, False, Statistics())

    def _follow(self, events: Iterator[Event], seen: int) -> Ended:
        """Follow events to the last.

        Args:
            events: of one generation of processes.
            seen: examples that had been used before.
        """
        before, chronicle = self._seconds, self._keeper.chronicle
        chronicle.processes_started()
        for event in events:
            if self._early is not None and isinstance(event, _OF_UPDATES):
                continue
            if isinstance(event, Connected):
                self._channel = "+".join(sorted(set(event.channels)))
                self._stages.end()
                if self._task.address is not None or len(set(event.hosts)) > 1:
                    self._reporter.notice(event.message)
                    chronicle.happened("notice", event.message)
            elif isinstance(event, Happened):
                chronicle.happened(event.kind, event.text)
            elif isinstance(event, FleetReport):
                chronicle.fleet(event, before + event.seconds)
            elif isinstance(event, Notice):
                self._reporter.notice(event.text)
                chronicle.happened(event.kind, event.text)
                if event.kernel:
                    with suppress(StorageError):  # a full disk does not end a training
                        add_kernel(self._run, event.kernel)
            elif isinstance(event, Updated):
                self._keeper.updated(event.update)
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
                chronicle.happened("saved", f"checkpoint of update {event.snapshot.version}")
            elif isinstance(event, Ended):
                self._last_seconds = event.seconds
                if self._early is not None:
                    statistics, tracks = event.statistics, event.tracks
                    return self._ended(replace(self._early, statistics=statistics, tracks=tracks))
                return self._ended(
                    replace(
                        event, seconds=before + event.seconds,
                        examples_seen=seen + event.examples_seen,
                    )
                )  # fmt: skip
            for hook in self._hooks:
                hook.event(event)
        raise RunError("training ended without its last event", "This is a bug; please report it")

    def _progress(self, event: Progress) -> None:
        self._seen = event.examples_seen
        self._keeper.progress(event)
        self._reporter.progress(event)

    def _rate(self, examples: int, seconds: float) -> float:
        """Examples a second of this session, from those of the whole run and its seconds."""
        spent = seconds - self._seconds_before
        return (examples - _examples(self._start)) / spent if spent > 0 else 0.0

    def _ended(self, event: Ended) -> Ended:
        if event.diverged is not None:
            found = event.diverged
            rate = float(f"{found.learning_rate / 10:.3g}")
            remedy = self._config.spelling.given("learning_rate", rate)
            bound = exceeded_bound(self._job, self._dataset, found, event.snapshot.weights)
            raise DivergedError(found.step, found.loss, found.learning_rate, remedy, bound)
        self._keeper.save(event.snapshot)
        self._keeper.ended(event)
        if self._reason is not None:
            self._keeper.chronicle.happened("stopped", self._reason)
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
        test = self._background.run(lambda: self._measure(model, "test", surest=True))
        held_out = self._validated(model)
        row = EpochRow(
            epoch=event.epoch + 1,
            train_loss=event.loss + test.penalty,
            train_accuracy=event.accuracy,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            seconds=event.seconds,
            **_validation(held_out),
        )
        self._keeper.epoch(row, event.snapshot.version, test)
        self._reporter.epoch(row)
        self._train_losses.append(row.train_loss)
        if held_out is not None:
            self._patience.add(row.epoch, held_out.loss)
        if self._patience.exhausted and row.epoch < self._config.epochs:
            given = event.snapshot, event.seconds, self._seen
            self._end_early(Ended(*given, True, Statistics()))

    def _note_loss(self) -> None:
        """Tell the user if the run has ended while its loss was still falling."""
        whole = len(self._train_losses) == self._config.epochs and self._early is None
        if whole and (text := still_falling(self._train_losses)):
            self._reporter.notice(text)

    def _measure(
        self,
        model: Model,
        split: str,
        rows: NDArray[np.int64] | None = None,
        *,
        surest: bool = False,
    ) -> Measured:
        given = model, self._dataset, split, self._job.regularization
        return measure_split(*given, rows=rows, surest=surest)

    def _validated(self, model: Model) -> Measured | None:
        """Measure a model on the rows held out, if there are any."""
        rows = self._job.plan.held_out
        if not len(rows):
            return None
        return self._background.run(lambda: self._measure(model, "train", rows))

    def _result(self, ended: Ended) -> TrainResult:
        model = self._keeper.model(ended.snapshot)
        config, plan = self._config, self._job.plan
        trained = plan.trained if len(plan.held_out) else None
        train_set, test_set = self._measure(model, "train", trained), self._measure(model, "test")
        held_out = self._measure(model, "train", plan.held_out) if trained is not None else None
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
            staleness={str(k): n for k, n in sorted(ended.statistics.ages.items())},
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
            wall_seconds=time.perf_counter() - self._stages.began,
            startup_seconds=sum(self._stages.seconds.values()),
            startup_stages=self._stages.seconds,
            step_seconds=ended.seconds - self._seconds_before,
            step_examples=max(0, ended.examples_seen - _examples(self._start)),
            examples_per_second=self._rate(ended.examples_seen, ended.seconds),
            weights_sha256=weights_sha256(model.weights),
            journal_head=self._keeper.head,
            reason=self._reason,
            **_validation(held_out),
            **{name: value for hook in self._hooks for name, value in hook.result(ended).items()},
        )


def _validation(found: Measured | None) -> dict[str, Any]:
    """What was measured on the rows held out, as fields of rows and results."""
    if found is None:
        return {}
    return {"validation_loss": found.loss, "validation_accuracy": found.accuracy}


def _by_worker(seconds: dict[int, float]) -> dict[str, float]:
    return {str(worker): seconds[worker] for worker in sorted(seconds)}


def _examples(start: Snapshot) -> int:
    """How many examples have been used before."""
    return start.position.examples_seen if start.position else 0
