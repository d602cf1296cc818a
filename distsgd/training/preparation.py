"""From settings, or from a run folder, to a session: everything is checked before it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distsgd.config.settings import TrainConfig
from distsgd.config.sources import resumed_config, suited, trained_rows
from distsgd.data.dataset import open_dataset
from distsgd.data.folder_files import read_inside
from distsgd.data.system import no_standard_descriptors
from distsgd.engine.blas import one_blas_thread
from distsgd.errors import DistsgdError, DivergedError, RunError, TrainingInterrupted, in_short
from distsgd.runs import JOURNAL, RunFolder, checkpoint_versions, clean_up, note_kernel
from distsgd.runs.opened_run import OpenedRun, new_run, open_run
from distsgd.runs.origin import change_tags, checked_tags, origin_here
from distsgd.training.features import features_of
from distsgd.training.following import recorded_rest
from distsgd.training.interrupts import NEVER, Stop, Stopping
from distsgd.training.limits import check_fleet, check_sizes
from distsgd.training.logbook import Start
from distsgd.training.recovery import find_tail, first_start
from distsgd.training.results import Reporter, Stages, TrainResult, result_from
from distsgd.training.session import Session, Task

__all__ = ["resume_with", "train_with", "trained"]


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
    command: Sequence[str] | None = None,
    tags: Sequence[str] = (),
) -> TrainResult:
    """Train with settings as one object; see `distsgd.training.training.train`.

    Args:
        config: the settings.
        run_dir: as for `train`, like the next four.
        reporter: notified of progress.
        trace: a file for a timeline.
        chaos: faults to cause.
        address: of a Ray cluster.
        stopping: what may end the training early.
        began: when the command started, by `time.perf_counter`; None for now.
        command: the command line, if there is one.
        tags: words that the run is to be found by.

    Returns:
        the result, also of a training that was stopped: its status is then "interrupted".
    """
    stages = Stages(time.perf_counter() if began is None else began, reporter)
    tags = checked_tags(tags)
    check_fleet(config, address)
    hooks = features_of(config, trace, chaos)
    stages.enter("dataset")
    with one_blas_thread(check_at_end=False):  # each update checks
        dataset = open_dataset(
            config.dataset, cache_limit=config.cache_limit, stream=config.streams
        )
        if config.names_given is not None:
            config = suited(config, dataset)
        check_sizes(config, dataset, elsewhere=address is not None)
        dataset.verify()  # before anything is made
        rows = trained_rows(dataset.manifest.rows("train"), config.validation)
        if config.batch_size == rows < TrainConfig.batch_size:
            smaller = config.spelling.setting("batch_size")
            reporter.notice(
                f"a minibatch has all {config.batch_size} training examples, so an epoch is one "
                f"update; a smaller {smaller} makes more of it"
            )
        with stopping as stop:
            origin = origin_here(command)
            run = new_run(run_dir, config, dataset, chaos, origin)
            change_tags(run.folder, tags)
            task = Task(config=config, run=run, address=address, hooks=hooks, origin=origin)
            return trained(task, None, reporter, stop, stages)


@no_standard_descriptors()
def resume_with(
    run: str | Path,
    given: dict[str, Any],
    reporter: Reporter,
    chaos: str | None = None,
    address: str | None = None,
    stopping: Stopping = NEVER,
    began: float | None = None,
    command: Sequence[str] | None = None,
) -> TrainResult:
    """Resume with new settings by name; see `distsgd.training.training.resume` and `train_with`."""
    stages = Stages(time.perf_counter() if began is None else began, reporter)
    stages.enter("dataset")
    with one_blas_thread(check_at_end=False):
        opened = open_run(run)
        folder, dataset = opened.folder, opened.dataset
        _check_not_running(folder)
        folder.hold()
        try:
            clean_up(folder)
            tail = None if _has_not_begun(opened) else find_tail(opened, reporter.notice)
            before = opened.origin if tail is None else tail.settings
            config = resumed_config(before, given)
            hooks = features_of(config, chaos=chaos)
            check_fleet(config, address)
            check_sizes(config, dataset, elsewhere=address is not None)
            ended = folder.report().get("status")
            if ended == "finished" and config.epochs == before.epochs:
                longer = config.spelling.setting("epochs")
                reporter.notice(f"{folder.path} has finished already; {longer} makes it longer")
                folder.release()
                return _reported(folder)
            dataset.verify()
            for remark in filter(None, (folder.others(), note_kernel(folder))):
                reporter.notice(remark)
            recorded = None if tail is None else recorded_rest(opened, tail, given, reporter)
            later = () if recorded is None else recorded.entries
            start = first_start(opened) if tail is None else tail.start(opened, later=later)
        except BaseException:
            folder.release()
            raise
        with stopping as stop:
            task = Task(
                config=config, run=opened, resumes=recorded is None, address=address, hooks=hooks,
                origin=origin_here(command), recorded=recorded,
            )  # fmt: skip
            return trained(task, start, reporter, stop, stages)


def _has_not_begun(run: OpenedRun) -> bool:
    """Whether a run was killed before its first checkpoint, and so before its first update.

    Then its journal is removed, which may say that it was resumed before.

    Raises:
        RunError: it is a fork, which begins with a checkpoint.
    """
    folder = run.folder
    if checkpoint_versions(folder.checkpoints):
        return False
    if run.parent is not None:
        raise RunError(f"{folder.path} was stopped before it had begun", "Fork again")
    with suppress(OSError):
        if _UPDATE in read_inside(folder.path / JOURNAL)[:_BEGINNING]:
            return False
        folder.remove(JOURNAL)
    return True


_UPDATE, _BEGINNING = b'"v"', 2**16
"""The key of an update in a journal, and how many bytes of it are searched for one."""


def trained(
    task: Task, start: Start | None, reporter: Reporter, stop: Stop, stages: Stages
) -> TrainResult:
    """The result of a session; whatever happens, the report in the run folder says how it ended.

    Raises:
        TrainingInterrupted: instead of another KeyboardInterrupt.
    """
    run = task.run.folder
    try:
        if start is None:
            start = first_start(task.run)
        else:
            run.remove("report.json")
        return Session(task, start, reporter, stop).run(stages)
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


def _reported(folder: RunFolder) -> TrainResult:
    """The result of a run that has finished."""
    try:
        return result_from(folder.read("report.json"))
    except TypeError as error:
        raise RunError(
            f"{folder.path / 'report.json'} is damaged: {in_short(error)}", "Remove it"
        ) from None


def _check_not_running(folder: RunFolder) -> None:
    status = folder.status()
    if status == "running":
        raise RunError(f"{folder.path} is running", "Wait for its end, or stop it first")
    if status == "diverged":
        raise RunError(f"{folder.path} has diverged", "Train again with a smaller learning rate")
