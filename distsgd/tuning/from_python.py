"""The Python functions `sweep` and `tune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distsgd.errors import RunError, UsageError
from distsgd.spelling import spelling
from distsgd.training.arguments import as_path, as_text
from distsgd.training.interrupts import FirstCtrlC
from distsgd.tuning.study_folder import find_study, read_study
from distsgd.tuning.sweep import KIND as SWEEP
from distsgd.tuning.sweep import SweepFollower, sweep_with
from distsgd.tuning.sweep_plan import SweepPlan, sweep_plan
from distsgd.tuning.sweep_results import SweepResult
from distsgd.tuning.tune import KIND as TUNE
from distsgd.tuning.tune import TuneFollower, tune_with
from distsgd.tuning.tune_plan import USUAL_REDUCTION, TunePlan, tune_plan
from distsgd.tuning.tune_results import TuneResult

__all__ = ["resumed_sweep", "resumed_tune", "sweep", "tune"]

_HEAD = "10.0.0.1:6379"


def sweep(
    vary: Mapping[str, Sequence[Any]] | Sequence[str] = (),
    *,
    seeds: int = 1,
    study: str | Path | None = None,
    resume: str | Path | None = None,
    follower: SweepFollower | None = None,
    address: str | None = None,
    **settings: Any,
) -> SweepResult:
    """Train all combinations of some settings, each with several seeds, on one Ray.

    Called again, it goes on where it was stopped or killed; a sweep that has finished is returned
    as it is.

    Args:
        vary: setting -> values, such as ``{"consistency": ["bsp", "ssp:3", "asp"]}``.
        seeds: how many of each combination, counted up from the setting ``seed``.
        study: the folder of the sweep; None for one that follows from the other arguments.
        resume: a sweep to go on with, in place of all that says what to do: its folder, its name,
            or "latest".
        follower: its methods are called while the sweep runs, in its thread.
        address: HOST:PORT of the Ray cluster to train on, or "auto"; None for a private Ray.
        **settings: those that do not vary, as for `train`.

    Returns:
        Every training, and for each combination means and standard deviations.

    Raises:
        TrainingInterrupted: Ctrl-C, after a whole update.
        UsageError: an argument cannot be used, or ``study`` is the folder of another study.
        RunError: another process carries out the sweep, or there is none to resume.
        DistsgdError: see `distsgd.errors`. A training that fails is a row of the result.
    """
    address = as_text("address", address, _HEAD)
    folder: Path | None
    if resume is not None:
        folder, plan = resumed_sweep(resume, {"vary": vary, "study": study, **settings})
    else:
        plan = sweep_plan(vary, seeds, settings)
        folder = None if study is None else as_path("study", study)
    stop = FirstCtrlC()
    result = sweep_with(plan, folder, follower, address, stop)
    stop.check(result.study_dir, len(result.runs))
    return result


def tune(
    search: Mapping[str, Any] | Sequence[str] = (),
    *,
    method: str = "random",
    trials: int | None = None,
    reduction: int = USUAL_REDUCTION,
    final: bool = False,
    study: str | Path | None = None,
    resume: str | Path | None = None,
    follower: TuneFollower | None = None,
    address: str | None = None,
    **settings: Any,
) -> TuneResult:
    """Search settings: train several in one pass over the data, and choose by rows held out.

    The test set is not touched, unless ``final``. Called again, it goes on where it was stopped or
    killed.

    Args:
        search: setting -> values or range, such as ``{"learning_rate": "log:0.001..0.1"}``; empty
            for ranges around the recipe of model and loss.
        method: "random", "grid" or "halving" (successive halving).
        trials: how many settings are tried; None for 16, or all of a grid.
        reduction: with halving, the best 1/reduction of the trials go on.
        final: train the best settings on all training rows, and measure the test set.
        study: the folder of the search; None for one that follows from the other arguments.
        resume: a search to go on with, in place of all that says what to try: its folder, its
            name, or "latest"; ``workers`` may be another number.
        follower: its methods are called while the search runs, in its thread.
        address: HOST:PORT of the Ray cluster to train on, or "auto"; None for a private Ray.
        **settings: those that are not searched, as for `train`; ``validation`` is the share of
            the training rows that is held out, 0.1 unless given.

    Returns:
        All trials, best first, and the file with the settings of the best.

    Raises:
        TrainingInterrupted: Ctrl-C, after an epoch.
        UsageError: an argument cannot be used, or ``study`` is the folder of another study.
        RunError: another process carries out the search, or there is none to resume.
        DistsgdError: all trials have diverged; or see `distsgd.errors`.
    """
    address = as_text("address", address, _HEAD)
    folder: Path | None
    if resume is not None:
        workers = settings.pop("workers", None)
        folder, plan = resumed_tune(
            resume, {"search": search, "trials": trials, "study": study, **settings}, workers
        )
    else:
        plan = tune_plan(
            search, method=method, trials=trials, reduction=reduction, settings=settings
        )
        folder = None if study is None else as_path("study", study)
    stop = FirstCtrlC()
    result = tune_with(plan, folder, follower, final=final, address=address, stopping=stop)
    stop.check(result.study_dir, result.epochs)
    return result


def resumed_sweep(name: str | Path, beside: Mapping[str, Any]) -> tuple[Path, SweepPlan]:
    """The folder of a sweep, and what it does.

    Args:
        name: as for `sweep`.
        beside: other arguments, none of which may be given.

    Raises:
        UsageError: one of them is given.
        RunError: there is no such sweep.
    """
    folder, definition = _resumed(name, SWEEP, beside)
    try:
        vary = {str(one): values for one, values in definition["vary"]}
        settings, seeds = definition["settings"], definition["seeds"]
        return folder, sweep_plan(vary, len(seeds), {**settings, "seed": seeds[0]})
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _damaged(folder, error) from None


def resumed_tune(
    name: str | Path, beside: Mapping[str, Any], workers: Any = None
) -> tuple[Path, TunePlan]:
    """The folder of a search, and what it tries; as `resumed_sweep`.

    Args:
        name: as for `tune`.
        beside: other arguments, none of which may be given.
        workers: processes from now on.
    """
    folder, definition = _resumed(name, TUNE, beside)
    try:
        method = str(definition["method"])
        settings = {**definition["settings"], "workers": workers}
        return folder, tune_plan(
            {str(one): text for one, text in definition["search"]},
            method=method,
            trials=None if method == "grid" else int(definition["asked"]),
            reduction=int(definition["reduction"]),
            settings=settings,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from None


def _resumed(
    name: str | Path, wanted: str, beside: Mapping[str, Any]
) -> tuple[Path, dict[str, Any]]:
    for other, value in beside.items():
        if value is not None and value != () and value != []:
            raise UsageError(
                f"{spelling().setting('resume')} does not go with {spelling().setting(other)}",
                f"A {wanted} that is resumed does what it was asked at its start",
            )
    folder = find_study(name, wanted)
    kind, definition, _ = read_study(folder)
    if kind != wanted:
        raise UsageError(f"{folder} is a {kind}", f"Resume it: `distsgd {kind} --resume {folder}`")
    return folder, definition


def _damaged(folder: Path, error: Exception) -> RunError:
    return RunError(f"the first line of {folder} is damaged: {error}", "Begin another study")
