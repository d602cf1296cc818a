"""The Python functions `train`, `resume` and `scale`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distsgd.config.sources import config_from
from distsgd.errors import RunError, UsageError
from distsgd.on_ray.capacity import check_processes
from distsgd.runs import find_run, handle, want_workers
from distsgd.spelling import spelling
from distsgd.training.arguments import as_path, as_reporter, as_text, as_whole_number
from distsgd.training.interrupts import FirstCtrlC
from distsgd.training.preparation import resume_with, train_with
from distsgd.training.results import Reporter, TrainResult

__all__ = ["resume", "scale", "train"]

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


def scale(run: str | Path, workers: int) -> None:
    """Change the number of workers of a run that is training, without a restart.

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
            f"Resume it with as many: `distsgd resume {handle(folder)} --workers {workers}`",
        )
    if folder.settings().workers == 0:
        raise UsageError(
            f"{folder.path} trains in one process, without workers",
            f"Stop it, and resume it: `distsgd resume {handle(folder)} --workers {workers}`",
        )
    check_processes(workers, folder.settings().servers, spelling().given("workers", workers))
    want_workers(folder, workers)
