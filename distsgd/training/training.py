"""The Python functions `train`, `resume`, `fork` and `scale`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distsgd.config.settings import SETTINGS, TrainConfig
from distsgd.config.sources import config_from
from distsgd.errors import RunError, UsageError
from distsgd.on_ray.capacity import check_processes
from distsgd.runs import find_run, handle, want_workers
from distsgd.spelling import spelling
from distsgd.training.arguments import (
    as_path,
    as_reporter,
    as_text,
    as_whole_number,
    with_settings,
)
from distsgd.training.callbacks.callback import Callback, Followers, as_callbacks
from distsgd.training.callbacks.notebook import verbose_reporter
from distsgd.training.idempotent import resumable_among, run_to_resume
from distsgd.training.interrupts import FirstCtrlC
from distsgd.training.preparation import resume_with, train_with
from distsgd.training.results import Reporter, TrainResult

__all__ = ["fork", "resume", "scale", "train"]

_FAULTS, _HEAD = "kill-worker:every=50", "10.0.0.1:6379"


@with_settings
def train(
    dataset: Any = None,
    y: Any = None,
    *,
    loss: str | None = None,
    test: tuple[Any, Any] | None = None,
    test_share: float | None = None,
    sample_weight: Any = None,
    config: TrainConfig | None = None,
    run_dir: str | Path | None = None,
    resume_if_exists: bool = False,
    reporter: Reporter | None = None,
    callbacks: Sequence[Callback] | None = None,
    verbose: bool = False,
    trace: str | Path | None = None,
    chaos: str | None = None,
    address: str | None = None,
    tags: Sequence[str] = (),
    batch_size: int | str | None = None,
    sampling: str | None = None,
    shuffle: str | None = None,
    shuffle_window: int | None = None,
    validation: float | None = None,
    class_weight: str | Mapping[Any, float] | None = None,
    without: str | Sequence[int] | None = None,
    pixel_scale: float | None = None,
    cache: str | None = None,
    cache_budget: int | None = None,
    cache_size: int | None = None,
    model: str | None = None,
    regularization: float | None = None,
    init_scale: float | None = None,
    dtype: str | None = None,
    arithmetic: str | None = None,
    epochs: int | None = None,
    patience: int | None = None,
    learning_rate: float | None = None,
    optimizer: str | None = None,
    momentum: float | None = None,
    schedule: str | None = None,
    scale_lr: bool | None = None,
    warmup_epochs: float | None = None,
    step_epochs: float | None = None,
    step_factor: float | None = None,
    seed: int | None = None,
    slot_size: int | None = None,
    workers: int | str | None = None,
    servers: int | None = None,
    elastic: bool | None = None,
    consistency: str | None = None,
    staleness: int | None = None,
    backup: int | None = None,
    local_steps: int | None = None,
    compress: str | None = None,
    error_feedback: bool | None = None,
    channel: str | None = None,
    placement: str | None = None,
    log_every: int | None = None,
    keep_checkpoints: int | None = None,
    checkpoint_seconds: float | None = None,
    journal: str | None = None,
    verify: float | None = None,
    hang_seconds: float | None = None,
    wait_seconds: float | None = None,
) -> TrainResult:
    """Train a classifier; the settings are those of `distsgd train`, with the same defaults.

    What is trained on is a dataset, or arrays: ``train(X, y)``, or ``train(dataset=(X, y))``. They
    are stored in the user's cache, under a name made of their content, for workers to read and for
    `resume`, `evaluate` and `audit` later; `TrainResult.dataset` is that name.

    Args:
        y: the class of each row of arrays: whole numbers or words. Beside a dataset, the loss.
        test: rows and classes to test arrays on, as (X, y); None to draw some of theirs.
        test_share: the share that is drawn, by class, with the seed; None for 0.2.
        sample_weight: of the rows of arrays; None if all count alike.
        config: all settings in one object, in place of the arguments below.
        run_dir: a new folder for the run; None for one in the user's data folder.
        resume_if_exists: continue the run in ``run_dir``, if there is one; a finished one is
            returned as it is, one that was begun with other settings is refused.
        reporter: its methods are called while the training runs, in its thread.
        callbacks: the same from threads of their own: they can neither stop nor delay it.
        verbose: show progress: a line for each epoch on stdout, or in a notebook a live display.
        trace: a file for a timeline of every process, for Perfetto or Chrome.
        chaos: faults to inject, such as "kill-worker:every=50,drop-push:p=0.01".
        address: HOST:PORT of the Ray cluster to train on, or "auto"; None for a private Ray.
        tags: words that the run is to be found by.
        SETTINGS

    Returns:
        What the training came to; `TrainResult.run_dir` is its folder.

    Raises:
        TrainingInterrupted: Ctrl-C, after a whole update; a KeyboardInterrupt with the run folder.
        UsageError: a setting or an argument cannot be used.
        DatasetError: there is no such dataset, or it is damaged.
        RunError: there is something in ``run_dir`` already.
        DivergedError: the loss is no longer finite.
        VerificationError: an update that was recomputed is different (``verify``).
        RuntimeFailure: workers or servers could not do their work.
        DistsgdError: any other trouble that has a remedy; see `distsgd.errors`.
    """
    given = {name: value for name, value in locals().items() if name in SETTINGS}
    arrays = {"test": test, "test_share": test_share, "sample_weight": sample_weight}
    if dataset is None or isinstance(dataset, str | os.PathLike):
        given["loss"] = _loss(loss, y, arrays)
        settings = config_from(given) if config is None else _complete(config, given)
    else:
        del given["dataset"]
        # The settings are checked before anything is stored.
        settings = config_from(given) if config is None else _complete(config, given)
        name = _stored(dataset, y, settings.seed, arrays)
        settings = (
            config_from({**given, "dataset": name})
            if config is None
            else replace(settings, dataset=name)
        )
    folder = None if run_dir in (None, "") else as_path("run_dir", run_dir)
    timeline = None if trace in (None, "") else as_path("trace", trace)
    chaos, address = as_text("chaos", chaos, _FAULTS), as_text("address", address, _HEAD)
    stop = FirstCtrlC()
    words = [tags] if isinstance(tags, str) else list(tags)
    begun = run_to_resume(folder, settings) if resume_if_exists else None
    with _followers(reporter, callbacks, verbose) as followers:
        if begun is None:
            result = train_with(
                settings, folder, followers, timeline, chaos, address, stop, tags=words
            )
        else:
            changes = resumable_among(given)
            result = resume_with(begun, changes, followers, chaos, address, stop)
        followers.end(result)
    stop.check(result.run_dir, result.steps)
    return result


def _loss(loss: str | None, y: Any, arrays: dict[str, Any]) -> str | None:
    """The loss beside a dataset that is no array, where it may have been given by position."""
    if wrong := [name for name, value in arrays.items() if value is not None]:
        raise UsageError(f"{wrong[0]} goes with arrays alone", f"Give train(X, y, {wrong[0]}=...)")
    if y is None or (loss is None and isinstance(y, str)):
        return loss if y is None else y
    raise UsageError("y goes with arrays alone", "Give train(X, y)")


def _stored(dataset: Any, y: Any, seed: int, arrays: dict[str, Any]) -> str:
    """The name of the dataset that arrays are stored as."""
    if y is None and not (isinstance(dataset, tuple | list) and len(dataset) == 2):
        raise UsageError(
            f"a dataset cannot be a {type(dataset).__name__} alone",
            "Give its name, path or URI; or rows and the class of each: train(X, y)",
        )
    rows, labels = dataset if y is None else (dataset, y)
    from distsgd.data.importing.arrays import TEST_SHARE, store_arrays  # loads pyarrow

    share = TEST_SHARE if arrays["test_share"] is None else arrays["test_share"]
    return store_arrays(
        rows, labels, test=arrays["test"], test_share=share, weights=arrays["sample_weight"],
        seed=seed,
    )  # fmt: skip


def _followers(reporter: Any, callbacks: Any, verbose: Any) -> Followers:
    """Who follows a training that a Python program starts."""
    if not isinstance(verbose, bool):
        raise UsageError(f"verbose cannot be {verbose!r}", "Give True or False")
    shown = [verbose_reporter()] if verbose else []
    return Followers([*shown, as_reporter(reporter)], as_callbacks(callbacks))


def _complete(config: Any, given: dict[str, Any]) -> TrainConfig:
    """The settings of an object, beside which none are given."""
    if not isinstance(config, TrainConfig):
        raise UsageError(
            f"config cannot be a {type(config).__name__}", "Give a distsgd.TrainConfig"
        )
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"config does not go with {spelling().given(name, value)}",
                f"Give dataclasses.replace(config, {name}=...)",
            )
    return config


def resume(
    run: str | Path,
    *,
    workers: int | str | None = None,
    servers: int | None = None,
    channel: str | None = None,
    epochs: int | None = None,
    chaos: str | None = None,
    reporter: Reporter | None = None,
    callbacks: Sequence[Callback] | None = None,
    verbose: bool = False,
    address: str | None = None,
) -> TrainResult:
    """Resume a run that was interrupted or killed, from its last update; none is lost.

    In `bsp` the run ends with the bits of a run without interruption. A finished run is returned
    as it is, unless ``epochs`` makes it longer.

    Args:
        run: path or name of a run, or "latest".
        workers: worker processes from now on, or "auto"; None for as many as before.
        servers: parameter servers from now on; None for as many as before.
        channel: how gradients travel from now on; None for as before.
        epochs: of the whole run; None for as many as before, else no fewer.
        chaos: faults to inject from now on, as for `train`; earlier ones are not repeated.
        reporter: its methods are called while the training runs, in its thread.
        callbacks: as for `train`.
        verbose: likewise.
        address: of the Ray cluster to train on, as for `train`.

    Returns:
        What the whole run came to.

    Raises:
        TrainingInterrupted: as `train`.
        RunError: there is no such run, it is running, or it cannot be resumed.
        UsageError: a setting or an argument cannot be used.
        DistsgdError: as `train`.
    """
    given = {"workers": workers, "servers": servers, "channel": channel, "epochs": epochs}
    chaos, address = as_text("chaos", chaos, _FAULTS), as_text("address", address, _HEAD)
    stop = FirstCtrlC()
    with _followers(reporter, callbacks, verbose) as followers:
        result = resume_with(run, given, followers, chaos, address, stop)
        followers.end(result)
    stop.check(result.run_dir, result.steps)
    return result


def fork(
    run: str | Path,
    at: int | str,
    *,
    order: str | None = None,
    whole: bool = False,
    run_dir: str | Path | None = None,
    chaos: str | None = None,
    reporter: Reporter | None = None,
    callbacks: Sequence[Callback] | None = None,
    verbose: bool = False,
    address: str | None = None,
    tags: Sequence[str] = (),
    **settings: Any,
) -> TrainResult:
    """Fork a run at an update: a new run that shares its history up to there, and goes on.

    Args:
        run: path or name of a run, or "latest".
        at: where: a number of updates, "last", "epoch:N" (its end), or a time of training such as
            "90s".
        order: "recorded" to make the updates in the order in which the run made them, in this
            process; "live" for an order of its own; None for "recorded" where that differs.
        whole: copy the history, so that the fork needs no other folder.
        run_dir: a new folder for the fork; None for one in the user's data folder.
        chaos: as for `train`, like the next five.
        reporter: its methods are called while the fork trains, in its thread.
        callbacks: as for `train`.
        verbose: likewise.
        address: likewise.
        tags: likewise.
        **settings: those that differ from the run's, such as learning_rate=0.001.

    Returns:
        What the fork came to.

    Raises:
        TrainingInterrupted: as `train`.
        UsageError: the run has no such update, or a setting cannot change there.
        RunError: there is no such run, or it cannot be recomputed up to there.
        DistsgdError: as `train`.
    """
    from distsgd.training.forking import fork_with

    folder = None if run_dir in (None, "") else as_path("run_dir", run_dir)
    chaos, address = as_text("chaos", chaos, _FAULTS), as_text("address", address, _HEAD)
    words = [tags] if isinstance(tags, str) else list(tags)
    stop = FirstCtrlC()
    with _followers(reporter, callbacks, verbose) as followers:
        result = fork_with(
            run, at, settings, followers, run_dir=folder, order=order, whole=bool(whole),
            chaos=chaos, address=address, stopping=stop, tags=words,
        )  # fmt: skip
        followers.end(result)
    stop.check(result.run_dir, result.steps)
    return result


def scale(run: str | Path, workers: int) -> None:
    """Change the number of workers of a running training, without a restart.

    Args:
        run: path or name of a run, or "latest".
        workers: how many from now on, at least 1.

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
