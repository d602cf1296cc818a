"""Training: from settings to a run folder with a trained classifier."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from distsgd.api.background import Background
from distsgd.api.jobs import make_job
from distsgd.api.measuring import Measured, measure_split
from distsgd.api.reporter import Reporter
from distsgd.api.results import EpochRow, TrainResult
from distsgd.api.stop_signals import StopSignals
from distsgd.core.initial import initial_weights, unpad
from distsgd.data.dataset import Dataset, verify_shards
from distsgd.data.locations import find_dataset
from distsgd.errors import DistsgdError, DivergedError, RunError, UsageError
from distsgd.run.checkpoint import Model, shaped, weights_sha256, write_checkpoint
from distsgd.run.config import TrainConfig
from distsgd.run.config_sources import config_from
from distsgd.run.folder import RunFolder, create_run
from distsgd.run.journal import JournalWriter
from distsgd.run.metrics import MetricsWriter
from distsgd.run.trace_file import check_trace_file, write_trace_file
from distsgd.runtime.events import Connected, Ended, EpochEnded, Event, Progress, Updated
from distsgd.runtime.job import Snapshot

__all__ = ["train", "train_with"]


def train(
    dataset: str | Path = "cifar10",
    loss: str = "softmax",
    *,
    workers: int | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    sampling: str | None = None,
    run_dir: str | Path | None = None,
    reporter: Reporter | None = None,
    trace: str | Path | None = None,
    **settings: Any,
) -> TrainResult:
    """Train a linear classifier; the same names and defaults as `distsgd train`.

    Args:
        dataset: "cifar10", "sample", or the path of a dataset folder.
        loss: "softmax" or "svm".
        workers: worker processes; 0 trains in this process, without Ray.
        batch_size: examples of a minibatch, however many workers share it.
        epochs: passes over the training set.
        seed: seed of the order of examples and of the first W.
        sampling: "shuffle", "random" or "sequential".
        run_dir: a new folder for the run; None for one in the user's data folder.
        reporter: told how training goes.
        trace: a file for a timeline of every process, for Perfetto or Chrome.
        **settings: further settings, see `distsgd.run.config.TrainConfig`.

    Raises:
        UsageError: a setting cannot be used.
        DistsgdError: anything else that the user can mend; see `distsgd.errors`.
    """
    named = {
        "dataset": str(dataset), "loss": loss, "workers": workers, "batch_size": batch_size,
        "epochs": epochs, "seed": seed, "sampling": sampling,
    }  # fmt: skip
    config = config_from({**named, **settings})
    folder = Path(run_dir) if run_dir else None
    return train_with(config, folder, reporter or Reporter(), Path(trace) if trace else None)


def train_with(
    config: TrainConfig, run_dir: Path | None, reporter: Reporter, trace: Path | None = None
) -> TrainResult:
    """See `train`; takes the settings as one object."""
    began = time.perf_counter()
    if trace is not None:
        check_trace_file(trace)
    with threadpool_limits(1), StopSignals() as signals:
        folder = find_dataset(config.dataset)
        dataset = Dataset(folder)
        verify_shards(folder, dataset.manifest)
        _check_sizes(config, dataset)
        run = create_run(run_dir, config, _identity(dataset))
        training = _Training(config, dataset, run, reporter, signals, trace)
        try:
            result = training.run(began)
        except DistsgdError as error:
            training.failed("diverged" if isinstance(error, DivergedError) else "failed", error)
            raise
        except BaseException as error:
            training.failed("failed", error)
            raise
        finally:
            run.release()
    return result


def _check_sizes(config: TrainConfig, dataset: Dataset) -> None:
    examples = len(dataset.train)
    if config.batch_size > examples:
        raise UsageError(
            f"--batch-size {config.batch_size} is larger than the training set of {examples}",
            f"Give a number from 1 to {examples}",
        )


def _identity(dataset: Dataset) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "name": manifest.name,
        "folder": str(dataset.folder.resolve()),
        "digest": manifest.digest,
        "train": manifest.rows("train"),
        "test": manifest.rows("test"),
    }


class _Training:
    """One training: follows the events of the runtime and keeps the run folder."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        run: RunFolder,
        reporter: Reporter,
        signals: StopSignals,
        trace: Path | None,
    ) -> None:
        self._config, self._dataset, self._run = config, dataset, run
        self._reporter, self._signals = reporter, signals
        self._job = replace(make_job(config, dataset), trace=trace is not None)
        self._trace = trace
        self._metrics = MetricsWriter(run.path / "metrics.jsonl")
        self._journal = JournalWriter(run.path, config, dataset.manifest.digest)
        self._background = Background()
        self._saved = -1
        self._channel = "inline"

    def run(self, began: float) -> TrainResult:
        job = self._job
        first = initial_weights(
            self._config.seed, job.classes, job.features, self._config.init_scale, job.dtype
        )
        start = Snapshot(0, first, {})
        self._save(start)
        self._reporter.started(self._config, self._run.path, job.plan.total_steps)
        with ExitStack() as stack:
            stack.callback(self._metrics.close)
            stack.callback(self._journal.close)
            stack.callback(self._background.close)
            events = self._events(start)
            stack.callback(events.close)  # type: ignore[attr-defined]
            ended = self._follow(events)
        self._reporter.ended()
        if self._trace is not None:
            write_trace_file(self._trace, ended.tracks)
        result = self._result(ended, began)
        self._run.write("report.json", asdict(result))
        return result

    def failed(self, status: str, error: BaseException) -> None:
        """Leave word in the run folder, if the disk still takes it."""
        try:
            self._run.write("report.json", {"status": status, "problem": str(error)})
        except DistsgdError:
            return

    def _events(self, start: Snapshot) -> Iterator[Event]:
        if self._config.workers == 0:
            from distsgd.runtime.inline import train_inline

            return train_inline(self._job, start, self._signals)
        from distsgd.runtime.ray_runtime import train_on_ray

        config = self._config
        return train_on_ray(self._job, start, config.workers, self._signals, config.channel)

    def _follow(self, events: Iterator[Event]) -> Ended:
        for event in events:
            if isinstance(event, Connected):
                self._channel = "+".join(sorted(set(event.channels)))
            elif isinstance(event, Updated):
                self._journal.add(event.update)
            elif isinstance(event, Progress):
                self._journal.flush()
                self._metrics.write({"kind": "progress", **asdict(event)})
                self._reporter.progress(event)
            elif isinstance(event, EpochEnded):
                self._epoch_ended(event)
            else:
                if event.diverged is not None:
                    found = event.diverged
                    raise DivergedError(found.step, found.loss, found.learning_rate)
                self._journal.flush()
                self._save(event.snapshot)
                return event
        raise RunError("training ended without a last word", "This is a fault; please report it")

    def _epoch_ended(self, event: EpochEnded) -> None:
        self._save(event.snapshot)
        model = self._model(event.snapshot)
        test = self._background.run(lambda: self._measure(model, "test"))
        row = EpochRow(
            epoch=event.epoch + 1,
            train_loss=event.loss + test.penalty,
            train_accuracy=event.accuracy,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            seconds=event.seconds,
        )
        self._metrics.write({"kind": "epoch", **asdict(row)})
        self._reporter.epoch(row)

    def _measure(self, model: Model, split: str) -> Measured:
        return measure_split(model, self._dataset, split, self._job.regularization)

    def _model(self, snapshot: Snapshot) -> Model:
        job, manifest = self._job, self._dataset.manifest
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

    def _save(self, snapshot: Snapshot) -> None:
        if snapshot.version != self._saved:
            write_checkpoint(self._run.checkpoints, self._model(snapshot))
            self._saved = snapshot.version

    def _result(self, ended: Ended, began: float) -> TrainResult:
        model = self._model(ended.snapshot)
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
            examples_per_second=ended.examples_seen / ended.seconds if ended.seconds else 0.0,
            weights_sha256=weights_sha256(model.weights),
        )
