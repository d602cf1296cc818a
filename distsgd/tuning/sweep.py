"""A sweep: trainings of all combinations of settings, one after another, on one Ray.

Each is a run with a folder of its own, as `distsgd train` makes it. One that diverges or fails is a
row of the result. A sweep that was killed goes on: what has ended is not repeated, and the run that
was in training is resumed from its last update.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from distsgd.engine.events import Progress
from distsgd.errors import (
    DistsgdError,
    DivergedError,
    RunError,
    RuntimeFailure,
    StorageError,
    TrainingInterrupted,
)
from distsgd.runs import RunFolder
from distsgd.runs.export.rows import ROW_FORMATS, rows_content
from distsgd.runs.history import HistoryReader
from distsgd.training.interrupts import NEVER, Stopping
from distsgd.training.preparation import resume_with, train_with
from distsgd.training.results import EpochRow, Reporter, TrainResult
from distsgd.tuning.study_folder import StudyFolder, studies_home, study_digest
from distsgd.tuning.sweep_plan import Point, SweepPlan
from distsgd.tuning.sweep_results import SweepResult, SweepRun, summarised

__all__ = ["KIND", "SweepFollower", "sweep_with"]

KIND = "sweep"
_RUNS = "runs"
_FIELDS = {one.name for one in fields(SweepRun)}


class SweepFollower:
    """Receives the progress of a sweep. Every method does nothing; override what you need."""

    def started(self, plan: SweepPlan, folder: Path, done: int) -> None:
        """The study folder is there; ``done`` trainings have ended before."""

    def began(self, point: Point, resumes: bool) -> None:
        """A training begins, or is resumed."""

    def stage(self, name: str) -> None:
        """It has come to a stage of its start; see `Reporter.stage`."""

    def progress(self, point: Point, progress: Progress) -> None:
        """Some updates of it were applied."""

    def epoch(self, point: Point, row: EpochRow) -> None:
        """An epoch of it has ended."""

    def ended(self, point: Point, run: SweepRun) -> None:
        """It has ended, in whatever way."""

    def notice(self, text: str) -> None:
        """Something happened that does not end the sweep."""

    def closed(self) -> None:
        """Nothing more follows."""


class _Followed(Reporter):
    """Passes the progress of one training on."""

    def __init__(self, follower: SweepFollower, point: Point) -> None:
        self._follower, self._point = follower, point

    def stage(self, name: str) -> None:
        self._follower.stage(name)

    def progress(self, progress: Progress) -> None:
        self._follower.progress(self._point, progress)

    def epoch(self, row: EpochRow) -> None:
        self._follower.epoch(self._point, row)

    def notice(self, text: str) -> None:
        self._follower.notice(f"{self._point.name}, seed {self._point.config.seed}: {text}")


def sweep_with(
    plan: SweepPlan,
    study: Path | None = None,
    follower: SweepFollower | None = None,
    address: str | None = None,
    stopping: Stopping = NEVER,
) -> SweepResult:
    """Carry out a sweep, or go on with it.

    Args:
        plan: what to do.
        study: its folder; None for one that follows from the plan.
        follower: notified of progress.
        address: of the Ray cluster to train on.
        stopping: what may end it early, after an update.

    Returns:
        the result, also of a sweep that was stopped: its status is then "interrupted".

    Raises:
        UsageError: the folder is that of another study.
        RunError: another process carries it out.
        StorageError: the folder cannot be written.
    """
    began = time.perf_counter()
    digest = study_digest(KIND, plan.definition)
    folder = StudyFolder(
        (study or studies_home() / f"{KIND}-{digest[:10]}").absolute(), KIND, plan.definition
    )
    with folder.held():
        work = _Sweep(plan, folder, follower or SweepFollower(), address)
        with stopping as stop:
            interrupted = work.run(nullcontext(stop))
        return work.result("interrupted" if interrupted else "finished", began)


class _Sweep:
    def __init__(
        self, plan: SweepPlan, folder: StudyFolder, follower: SweepFollower, address: str | None
    ) -> None:
        self._plan, self._folder, self._follower = plan, folder, follower
        self._address = address
        self._ended = _ended(folder)
        self._repeated = sum(run.status != "failed" for run in self._ended.values())

    def run(self, stopping: Stopping) -> bool:
        """Train what is left; returns whether a stop was asked for."""
        plan, follower = self._plan, self._follower
        left = [p for p in plan.points if not self._is_done(p)]
        follower.started(plan, self._folder.path, len(plan.points) - len(left))
        self._folder.make(_RUNS)
        ray = _Ray(left, self._address)
        try:
            for point in left:
                with stopping as stop:
                    if stop():
                        return True
                ray.connect()
                if self._train(point, stopping, ray):
                    return True
        finally:
            ray.close()
            follower.closed()
        return False

    def _is_done(self, point: Point) -> bool:
        """Whether it need not be trained; what failed is tried again."""
        run = self._ended.get(point.number)
        return run is not None and run.status != "failed"

    def _train(self, point: Point, stopping: Stopping, ray: _Ray) -> bool:
        """Train or resume one; returns whether it was stopped."""
        run_dir, resumes = self._place(point)
        self._follower.began(point, resumes)
        reporter = _Followed(self._follower, point)
        result: TrainResult | None = None
        status, problem = "failed", ""
        try:
            if resumes:
                result = resume_with(run_dir, {}, reporter, None, self._address, stopping)
            else:
                self._folder.add(begun=point.number, run=run_dir.name)
                result = train_with(
                    point.config, run_dir, reporter, None, None, self._address, stopping
                )
            if result.status == "interrupted":
                return True
            status = result.status
        except TrainingInterrupted:
            return True
        except DivergedError as error:
            status, problem = "diverged", error.problem
        except DistsgdError as error:
            problem = str(error)
            if isinstance(error, RuntimeFailure):
                ray.close()  # it may be what failed
        run = _run_of(point, run_dir, status, problem, result)
        self._ended[point.number] = run
        about = {name: value for name, value in asdict(run).items() if name != "run_dir"}
        self._folder.add(ended=point.number, run=run_dir.name, **about)
        self._follower.ended(point, run)
        return False

    def _place(self, point: Point) -> tuple[Path, bool]:
        """The run folder, and whether there is a run in it that can be resumed."""
        names = [line["run"] for line in self._folder.lines if line.get("begun") == point.number]
        runs = self._folder.path / _RUNS
        failed = self._ended.get(point.number)
        if names and failed is None:
            last = RunFolder(runs / str(names[-1]))
            with suppress(DistsgdError):
                last.settings()
                if last.status() in ("dead", "interrupted", "finished"):
                    return last.path, True
        name = point.folder if not names else f"{point.folder}-{len(names) + 1}"
        return runs / name, False

    def result(self, status: str, began: float) -> SweepResult:
        """What there is, which is also written into the folder as tables."""
        runs = tuple(self._ended[number] for number in sorted(self._ended))
        result = SweepResult(
            study_dir=str(self._folder.path), status=status, varied=self._plan.varied,
            seeds=self._plan.seeds, rows=summarised(runs), runs=runs,
            planned=len(self._plan.points), repeated=self._repeated,
            wall_seconds=time.perf_counter() - began,
        )  # fmt: skip
        tables = {"runs": run_rows(runs), "epochs": epoch_rows(runs)}
        for name, rows in tables.items():
            for form in ROW_FORMATS:
                about = {"study": self._folder.path.name, "definition": self._plan.definition}
                self._folder.write(f"{name}.{form}", rows_content(rows, form, about))
        return result


class _Ray:
    """One Ray for all trainings of a sweep.

    Args:
        points: the trainings.
        address: of a cluster; None for a Ray of our own.
    """

    def __init__(self, points: list[Point], address: str | None) -> None:
        processes = [p.config.workers + p.config.servers for p in points if p.config.workers]
        self._most, self._address = max(processes, default=0), address
        self._stack = ExitStack()
        self._is_open = False

    def connect(self) -> None:
        """Connect, if a training needs it."""
        if self._is_open or not self._most:
            return
        if self._address is not None:
            from distsgd.cluster.connection import joined_cluster

            self._stack.enter_context(joined_cluster(self._address))
        else:
            from distsgd.on_ray.session import ray_session

            self._stack.enter_context(ray_session(cpus=self._most))
        self._is_open = True

    def close(self) -> None:
        """Disconnect; the next `open` begins anew."""
        self._is_open = False
        self._stack.close()


def _ended(folder: StudyFolder) -> dict[int, SweepRun]:
    """The trainings that have ended, by number; of one that failed and was repeated, the last."""
    found = {}
    for line in folder.lines:
        if "ended" not in line:
            continue
        name = Path(str(line["run"])).name  # a study folder from elsewhere names no other folders
        known = {name: value for name, value in line.items() if name in _FIELDS}
        known["run_dir"] = str(folder.path / _RUNS / name) if name else ""
        try:
            run = SweepRun(**known)
        except TypeError as error:
            raise RunError(f"{folder.path} is damaged: {error}", "Begin another study") from None
        found[run.number] = run
    return found


def _run_of(
    point: Point, run_dir: Path, status: str, problem: str, result: TrainResult | None
) -> SweepRun:
    seed = point.config.seed
    settings = dict(point.varied)
    if result is None:
        return SweepRun(
            number=point.number, name=point.name, settings=settings, seed=seed, status=status,
            problem=problem, run_dir=str(run_dir),
        )  # fmt: skip
    return SweepRun(
        number=point.number, name=point.name, settings=settings, seed=seed, status=status,
        run_dir=str(run_dir), epochs=result.epochs, train_loss=result.train_loss,
        train_accuracy=result.train_accuracy, test_loss=result.test_loss,
        test_accuracy=result.test_accuracy, seconds=result.train_seconds,
        examples_per_second=result.examples_per_second, wall_seconds=result.wall_seconds,
        weights_sha256=result.weights_sha256,
    )  # fmt: skip


def run_rows(runs: tuple[SweepRun, ...]) -> list[dict[str, Any]]:
    """A row for each training."""
    return [_flat(run, {"run_dir": run.run_dir}) for run in runs]


def _flat(run: SweepRun, last: Mapping[str, Any]) -> dict[str, Any]:
    about = asdict(run)
    settings = about.pop("settings")
    about.pop("run_dir")
    return {"run": about.pop("number"), "name": about.pop("name"), **settings, **about, **last}


def epoch_rows(runs: tuple[SweepRun, ...]) -> list[dict[str, Any]]:
    """A row for each epoch of each training, as the run folders have them."""
    rows = []
    for run in runs:
        about = {"run": run.number, "name": run.name, **run.settings, "seed": run.seed,
                 "status": run.status}  # fmt: skip
        with suppress(RunError, StorageError):  # one that could not even begin has none
            epochs = HistoryReader(run.run_dir, _MOST_EPOCHS).look().epochs
            for values in zip(*epochs.values(), strict=True):
                rows.append({**about, **dict(zip(epochs, values, strict=True))})
    return rows


_MOST_EPOCHS = 1_000_000
