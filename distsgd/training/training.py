"""Training: from settings to a run folder with a trained classifier."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from distsgd.config.jobs import first_weights, make_job
from distsgd.config.settings import TrainConfig
from distsgd.config.sources import config_from
from distsgd.core.chaos import Chaos
from distsgd.core.server import Ledger
from distsgd.data.dataset import Dataset, open_dataset
from distsgd.data.system import no_standard_descriptors
from distsgd.engine.blas import blas_kernel, one_blas_thread
from distsgd.engine.job import Snapshot
from distsgd.errors import (
    DistsgdError,
    DivergedError,
    RunError,
    TrainingInterrupted,
    UsageError,
    in_short,
)
from distsgd.on_ray.capacity import check_processes
from distsgd.proof.recovery import find_tail, settings_to_go_on
from distsgd.runs.folder import (
    RunFolder,
    add_kernel,
    create_run,
    find_run,
    forget_wanted,
    handle,
    other_kernels,
    want_workers,
)
from distsgd.runs.journal import Mark
from distsgd.runs.metrics import check_trace_file
from distsgd.runs.opened_run import OpenedRun, check_room, open_run
from distsgd.spelling import spelling
from distsgd.training.arguments import as_path, as_reporter, as_text, as_whole_number
from distsgd.training.chaos import chaos_from
from distsgd.training.interrupts import NEVER, FirstCtrlC, Stopping
from distsgd.training.keeper import Logbook, Task
from distsgd.training.limits import check_fleet, check_sizes
from distsgd.training.results import Reporter, TrainResult, result_from
from distsgd.training.session import Session

__all__ = ["resume", "resume_with", "scale", "train", "train_with"]

_FAULTS, _HEAD = "kill-worker:every=50", "10.0.0.1:6379"


def train(
    dataset: str | Path = "cifar10",
    loss: str = "softmax",
    *,
    model: str | None = None,
    workers: int | str | None = None,
    batch_size: int | str | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    sampling: str | None = None,
    run_dir: str | Path | None = None,
    reporter: Reporter | None = None,
    trace: str | Path | None = None,
    chaos: str | None = None,
    address: str | None = None,
    **settings: Any,
) -> TrainResult:
    """Train a classifier; the same names and defaults as `distsgd train`.

    Args:
        dataset: "cifar10", "sample", a name, or the path or URI of a dataset folder.
        loss: "softmax" or "svm".
        model: "linear", or "mlp:HIDDEN" for a network with so many hidden units.
        workers: worker processes; 0 trains in this process, without Ray; "auto" for as many as
            there are CPUs for, also while nodes join the cluster of your Ray and leave it.
        batch_size: examples of a minibatch, however many workers share it; "full" for all. None
            for 256, or all if there are fewer.
        epochs: passes over the training set.
        seed: seed of the order of examples and of the first W.
        sampling: "shuffle", "random" or "sequential".
        run_dir: a new folder for the run; None for one in the user's data folder.
        reporter: told how training goes.
        trace: a file for a timeline of every process, for Perfetto or Chrome.
        chaos: faults that are to come, as "kill-worker:every=50,drop-push:p=0.01".
        address: HOST:PORT of the Ray cluster to train on, or "auto"; None for a Ray of our own.
        **settings: further settings, see `distsgd.config.settings.TrainConfig`.

    Raises:
        TrainingInterrupted: Ctrl-C, after a whole update; a KeyboardInterrupt with the run folder.
        UsageError: a setting cannot be used.
        DistsgdError: anything else that the user can mend; see `distsgd.errors`.
    """
    named = {
        "dataset": dataset, "loss": loss, "model": model, "workers": workers,
        "batch_size": batch_size, "epochs": epochs, "seed": seed, "sampling": sampling,
    }  # fmt: skip
    config = config_from({**named, **settings})
    folder = None if run_dir in (None, "") else as_path("run_dir", run_dir)
    timeline = None if trace in (None, "") else as_path("trace", trace)
    chaos, address = as_text("chaos", chaos, _FAULTS), as_text("address", address, _HEAD)
    stop = FirstCtrlC()
    result = train_with(config, folder, as_reporter(reporter), timeline, chaos, address, stop)
    stop.check(result.run_dir, result.steps)
    return result


@no_standard_descriptors()
def train_with(
    config: TrainConfig,
    run_dir: Path | None,
    reporter: Reporter,
    trace: Path | None = None,
    chaos: str | None = None,
    address: str | None = None,
    stopping: Stopping = NEVER,
    began: float | None = None,
) -> TrainResult:
    """See `train`; takes the settings as one object, and what may end the training early.

    Args:
        config: the settings.
        run_dir: as for `train`, like the next four.
        reporter: told how training goes.
        trace: a file for a timeline.
        chaos: faults that are to come.
        address: of a Ray cluster.
        stopping: what may end the training early.
        began: when the command began, by `time.perf_counter`; None for now.

    Returns:
        the result, also of a training that was stopped: its status is then "interrupted".
    """
    began = time.perf_counter() if began is None else began
    check_fleet(config, elsewhere=address is not None)
    _check_address(address, config)
    faults = _faults(chaos, config)
    if trace is not None:
        check_trace_file(trace)
    with one_blas_thread(check_at_end=False):  # each update checks
        dataset = open_dataset(
            config.dataset, cache_limit=config.cache_limit, stream=config.streams
        )
        check_room(config, dataset)
        check_sizes(config, dataset, elsewhere=address is not None)
        dataset.verify()  # before anything is made
        if config.batch_size == dataset.manifest.rows("train") < TrainConfig.batch_size:
            reporter.notice(
                f"a minibatch has all {config.batch_size} training examples, so an epoch is one "
                "update; a smaller --batch-size makes more of it"
            )
        with stopping as stop:
            run = OpenedRun(create_run(run_dir, config, _identity(dataset), chaos), config, dataset)

            def session() -> Session:
                job = make_job(config, dataset)
                first = first_weights(config, job)
                logbook = Logbook(run.folder, Mark(run.first), Ledger(), config, job.plan)
                task = Task(config=config, run=run, trace=trace, chaos=faults, address=address)
                return Session(task, Snapshot(0, first, {}), logbook, reporter, stop)

            return _carried_out(session, run.folder, began)


def _carried_out(session: Callable[[], Session], run: RunFolder, began: float) -> TrainResult:
    """The result; whatever happens, the run folder tells of it.

    Raises:
        TrainingInterrupted: instead of another KeyboardInterrupt.
    """
    try:
        return session().run(began)
    except KeyboardInterrupt as error:
        with suppress(DistsgdError):
            run.write("report.json", {"status": "interrupted", "problem": "it was ended at once"})
        raise TrainingInterrupted(str(run.path), None) from error
    except BaseException as error:
        status = "diverged" if isinstance(error, DivergedError) else "failed"
        with suppress(DistsgdError):  # the disk may not take it
            run.write("report.json", {"status": status, "problem": str(error)})
        raise
    finally:
        run.release()


def resume(
    run: str | Path,
    *,
    workers: int | str | None = None,
    servers: int | None = None,
    channel: str | None = None,
    epochs: int | None = None,
    chaos: str | None = None,
    reporter: Reporter | None = None,
    address: str | None = None,
) -> TrainResult:
    """Go on with a run that was interrupted or killed, from its last update; none is lost.

    In `bsp` the run ends with the bits that it would have had. A run that has finished is left
    as it is, unless it is given more epochs.

    Args:
        run: path or name of a run, or "latest".
        workers: worker processes from here on, or "auto"; None for as many as before.
        servers: parameter servers from here on; None for as many as before.
        channel: from here on; None for that of before.
        epochs: of the whole run; no fewer than before.
        chaos: faults from here on, as for `train`; those of before come no more.
        reporter: told how training goes.
        address: of the Ray cluster to go on with, as for `train`.

    Raises:
        TrainingInterrupted: as `train`.
        RunError: there is no such run, it is running, or it cannot be gone on with.
        UsageError: a setting cannot be used.
    """
    given = {"workers": workers, "servers": servers, "channel": channel, "epochs": epochs}
    chaos, address = as_text("chaos", chaos, _FAULTS), as_text("address", address, _HEAD)
    stop = FirstCtrlC()
    result = resume_with(run, given, as_reporter(reporter), chaos, address, stop)
    stop.check(result.run_dir, result.steps)
    return result


@no_standard_descriptors()
def resume_with(
    run: str | Path,
    given: dict[str, Any],
    reporter: Reporter,
    chaos: str | None = None,
    address: str | None = None,
    stopping: Stopping = NEVER,
    began: float | None = None,
) -> TrainResult:
    """See `resume`; takes the new settings by name, and the rest as `train_with`."""
    began = time.perf_counter() if began is None else began
    with one_blas_thread(check_at_end=False):
        opened = open_run(run)
        folder, dataset = opened.folder, opened.dataset
        _check_not_running(folder)
        folder.hold()
        try:
            folder.sweep()
            forget_wanted(folder)
            tail = find_tail(opened, reporter.notice)
            config = settings_to_go_on(tail.settings, given)
            faults = _faults(chaos, config)
            check_fleet(config, elsewhere=address is not None)
            check_sizes(config, dataset, elsewhere=address is not None)
            _check_address(address, config)
            ended = folder.report().get("status")
            if ended == "finished" and config.epochs == tail.settings.epochs:
                reporter.notice(f"{folder.path} has finished already; --epochs makes it longer")
                folder.release()
                return _reported(folder)
            dataset.verify()
            if others := folder.others():
                reporter.notice(others)
            if other := other_kernels(folder):
                reporter.notice(other)
                add_kernel(folder, blas_kernel())
            found = tail.recovered(opened)
        except BaseException:
            folder.release()
            raise

        with stopping as stop:

            def session() -> Session:
                logbook = Logbook(
                    folder, tail.end, found.ledger, config, make_job(config, dataset).plan
                )
                folder.remove("report.json")
                logbook.gone_on()
                task = Task(config=config, run=opened, chaos=faults, address=address)
                return Session(task, found.snapshot, logbook, reporter, stop)

            return _carried_out(session, folder, began)


def _reported(folder: RunFolder) -> TrainResult:
    """What came out of a run that has finished."""
    try:
        return result_from(folder.read("report.json"))
    except TypeError as error:
        raise RunError(
            f"{folder.path / 'report.json'} is damaged: {in_short(error)}", "Remove it"
        ) from None


def scale(run: str | Path, workers: int) -> None:
    """Give a run that is training another number of workers, without a restart.

    Args:
        run: path or name of a run, or "latest".
        workers: how many from here on, at least 1.

    Raises:
        UsageError: that is no number of workers, or the run trains in one process.
        RunError: there is no such run, or it is not running.
    """
    folder = find_run(run)
    as_whole_number(spelling().setting("workers"), workers, least=1)
    if folder.status() != "running":
        raise RunError(
            f"{folder.path} is not running",
            f"`distsgd resume {handle(folder)} --workers {workers}` goes on with it",
        )
    if folder.settings().workers == 0:
        raise UsageError(
            f"{folder.path} trains in one process, without workers",
            "Stop it, and `distsgd resume` it with --workers",
        )
    check_processes(workers, folder.settings().servers, spelling().given("workers", workers))
    want_workers(folder, workers)


def _faults(chaos: str | None, config: TrainConfig) -> Chaos | None:
    return None if chaos is None else chaos_from(chaos, config.seed, config.workers)


def _check_address(address: str | None, config: TrainConfig) -> None:
    """Before anything is made: whether there is a cluster, and a use for it."""
    if address is None:
        return
    if config.workers == 0:
        raise UsageError(
            f"{spelling().setting('address')} does not go with {config.given('workers')}",
            "Give 1 worker or more",
        )
    from distsgd.cluster.connection import check_cluster

    check_cluster(address)


def _check_not_running(folder: RunFolder) -> None:
    status = folder.status()
    if status == "running":
        raise RunError(f"{folder.path} is running", "Wait for its end, or stop it first")
    if status == "diverged":
        raise RunError(f"{folder.path} has diverged", "Train again with a smaller learning rate")


def _identity(dataset: Dataset) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "name": manifest.name,
        "folder": str(dataset.folder.resolve()),
        "digest": manifest.digest,
        "train": manifest.rows("train"),
        "test": manifest.rows("test"),
    }
