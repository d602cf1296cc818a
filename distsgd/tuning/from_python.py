"""The Python function `sweep`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distsgd.errors import UsageError
from distsgd.spelling import spelling
from distsgd.training.arguments import as_path, as_text
from distsgd.training.interrupts import FirstCtrlC
from distsgd.tuning.study_folder import find_study, read_study
from distsgd.tuning.sweep import KIND, SweepFollower, sweep_with
from distsgd.tuning.sweep_plan import SweepPlan, sweep_plan
from distsgd.tuning.sweep_results import SweepResult

__all__ = ["resumed_sweep", "sweep"]


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
    address = as_text("address", address, "10.0.0.1:6379")
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


def resumed_sweep(name: str | Path, beside: Mapping[str, Any]) -> tuple[Path, SweepPlan]:
    """The folder of a sweep, and what it does.

    Args:
        name: as for `sweep`.
        beside: other arguments, none of which may be given.

    Raises:
        UsageError: one of them is given.
        RunError: there is no such sweep.
    """
    for other, value in beside.items():
        if value is not None and value != () and value != []:
            raise UsageError(
                f"{spelling().setting('resume')} does not go with {spelling().setting(other)}",
                "A sweep that is resumed does what it was asked at its start",
            )
    folder = find_study(name, KIND)
    kind, definition, _ = read_study(folder)
    if kind != KIND:
        raise UsageError(f"{folder} is a {kind}", f"Resume it: `distsgd {kind} --resume {folder}`")
    vary = {str(name): values for name, values in definition["vary"]}
    settings = definition["settings"]
    seeds = definition["seeds"]
    return folder, sweep_plan(vary, len(seeds), {**settings, "seed": seeds[0]})
