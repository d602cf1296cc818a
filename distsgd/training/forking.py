"""A fork: another future for a run, from any of its updates, with other settings."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.config.settings import RESUMABLE_SETTINGS, TrainConfig
from distsgd.core.arrays import Floats
from distsgd.core.server import Ledger
from distsgd.data.system import no_standard_descriptors
from distsgd.engine.blas import one_blas_thread
from distsgd.engine.job import Job, Snapshot
from distsgd.errors import RunError, StorageError, UsageError
from distsgd.proof.moments import update_of
from distsgd.proof.timeline import Moment, Timeline
from distsgd.runs import Entry, MetricsWriter, Place, RunFolder, seconds_of_steps, write_checkpoint
from distsgd.runs.journal import Forked, begin_fork
from distsgd.runs.journal_check import Beginning
from distsgd.runs.lineage import lineage
from distsgd.runs.opened_run import OpenedRun, new_run, open_run
from distsgd.runs.origin import change_tags, checked_tags, origin_here
from distsgd.runs.parent import COPY, RECORDED, Parent, parent_of
from distsgd.runs.residual_file import write_residuals
from distsgd.spelling import spelling
from distsgd.training.features import features_of
from distsgd.training.forked_settings import (
    changes_of,
    check_ledger,
    forked_config,
    order_of,
    with_plan,
)
from distsgd.training.history_copy import copy_history
from distsgd.training.interrupts import NEVER, Stopping
from distsgd.training.limits import check_fleet, check_sizes
from distsgd.training.logbook import Start
from distsgd.training.preparation import trained
from distsgd.training.recorded_order import RecordedOrder, lines_after
from distsgd.training.results import Reporter, Stages, TrainResult
from distsgd.training.session import Task

__all__ = ["fork_with"]


@dataclass(frozen=True)
class _Branch:
    """Where a fork begins, and how.

    Attributes:
        parent: the run that has the update.
        moment: its state there.
        changes: the settings that differ.
        config: all settings of the fork.
        order: of its updates.
        later: the lines of the parent that it follows.
        ledger: what has been applied, for its plan.
    """

    parent: OpenedRun
    moment: Moment
    changes: dict[str, Any]
    config: TrainConfig
    order: str
    later: list[Entry]
    ledger: Ledger


@no_standard_descriptors()
def fork_with(
    run: str | Path,
    at: int | str,
    given: Mapping[str, Any],
    reporter: Reporter,
    *,
    run_dir: Path | None = None,
    order: str | None = None,
    whole: bool = False,
    chaos: str | None = None,
    address: str | None = None,
    stopping: Stopping = NEVER,
    began: float | None = None,
    command: Sequence[str] | None = None,
    tags: Sequence[str] = (),
) -> TrainResult:
    """Fork a run and train the fork to its end.

    Args:
        run: path or name of a run, or "latest".
        at: the update, as `distsgd.proof.moments.update_of` reads it.
        given: settings that differ from those of the run, by name; None for those that stay.
        reporter: notified of progress.
        run_dir: a new folder for the fork.
        order: "recorded" to make the updates in the order in which the run made them, "live" for
            an order of its own; None for "recorded" where that is another one.
        whole: copy the history into the fork, instead of naming its place.
        chaos: faults to cause.
        address: of a Ray cluster.
        stopping: what may end the training early.
        began: when the command started, by `time.perf_counter`; None for now.
        command: the command line, if there is one.
        tags: words that the fork is to be found by.

    Raises:
        UsageError: the run has no such update, or a setting cannot change there.
        RunError: the run cannot be recomputed up to there.
    """
    stages = Stages(time.perf_counter() if began is None else began, reporter)
    tags = checked_tags(tags)
    stages.enter("dataset")
    with one_blas_thread(check_at_end=False):
        opened = open_run(run)
        dataset = opened.dataset
        dataset.verify()
        branch = _branch(opened, at, given, "live" if chaos and order is None else order)
        config, recorded = branch.config, branch.order == RECORDED
        if recorded and chaos:
            raise UsageError(
                f"{spelling().given('order', RECORDED)} has no processes to kill",
                f"Give {spelling().given('order', 'live')}",
            )
        hooks = features_of(config, chaos=chaos)
        check_fleet(config, address)
        check_sizes(config, dataset, elsewhere=address is not None)
        with stopping as stop:
            origin = origin_here(command)
            fork = new_run(
                run_dir, _begins_with(branch), dataset, chaos, origin, _parent(branch),
                branch.parent.products,
            )  # fmt: skip
            try:
                change_tags(fork.folder, tags)
                if whole:
                    copy_history(branch.parent, fork.folder, branch.moment)
                start = _begun(fork, branch, reporter)
            except BaseException as error:
                with suppress(StorageError):
                    fork.folder.write("report.json", {"status": "failed", "problem": str(error)})
                fork.folder.release()
                raise
            reporter.notice(_summary(branch))
            follows = RecordedOrder(fork, branch.later, branch.changes) if recorded else None
            task = Task(
                config=config, run=fork, resumes=not recorded, address=address, hooks=hooks,
                origin=origin, recorded=follows,
            )  # fmt: skip
            return trained(task, start, reporter, stop, stages)


def _branch(
    opened: OpenedRun, at: int | str, given: Mapping[str, Any], asked: str | None
) -> _Branch:
    """Where a fork begins, with everything checked that can be."""
    update = update_of(opened, at)
    parent = _owner(opened, update)
    before = Timeline(parent).at(update)
    job = parent.job(before.config)
    changes = changes_of(before.config, given, job.plan.examples)
    config = forked_config(before.config, changes)
    order = order_of(before.config, changes, asked)
    after = replace(parent.job(config), policy=_begins(parent, config, changes).policy())
    ledger = with_plan(before.ledger, job.plan, after, changes, update)
    if order != RECORDED:
        check_ledger(ledger, after, update)
    later: list[Entry] = []
    if order == RECORDED:
        ledger_before = Ledger.from_json(before.ledger.to_json())
        begin = Beginning(before.config, ledger_before, before.fleet, before.mark)
        later = lines_after(parent, begin)
        before = Timeline(parent).at(update, later)
        if not before.snapshot.usable:
            raise RunError(
                f"{parent.folder.path} cannot be forked at update {update} in the recorded order: "
                "the error feedback of a worker was ahead of it",
                "Fork one update later or earlier",
            )
    return _Branch(parent, before, changes, config, order, later, ledger)


def _owner(opened: OpenedRun, update: int) -> OpenedRun:
    """The run of a history whose settings held at an update."""
    parent = opened.parent
    if parent is None or update >= parent.update:
        return opened
    return _owner(lineage(opened)[-2].run, update)


def _begins(parent: OpenedRun, config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """The settings that a fork is recorded with.

    The number of replicas of local steps is that of the workers with which a run begins; a fork
    keeps that of its parent, unless it is given another number of workers.
    """
    if "workers" in changes:
        return config
    return replace(config, workers=parent.origin.workers)


def _begins_with(branch: _Branch) -> TrainConfig:
    return _begins(branch.parent, branch.config, branch.changes)


def _parent(branch: _Branch) -> Parent:
    moment = branch.moment
    changed = {name: getattr(branch.config, name) for name in branch.changes}
    folder = branch.parent.folder
    name, outer = folder.path.name, RunFolder(folder.path.parent)
    if (
        name == COPY
        and (outer.path / "config.json").is_file()
        and (of_outer := parent_of(outer)) is not None
    ):
        name = of_outer.name
    return Parent(
        path=folder.path,
        name=name,
        created=str(folder.read("config.json").get("created", "")),
        update=moment.version,
        mark=moment.mark,
        order=branch.order,
        changed=changed,
    )


def _begun(fork: OpenedRun, branch: _Branch, reporter: Reporter) -> Start:
    """Write the beginning of the journal and the checkpoint there; where the training starts."""
    moment, config = branch.moment, branch.config
    job = replace(fork.job(config), policy=fork.origin.policy())
    snapshot = _forked_snapshot(moment, job, reporter)
    ledger = branch.ledger
    position = ledger.position(job.plan, job.policy)
    place = Place(
        mark=moment.mark,
        ledger=ledger.to_json(),
        settings={name: getattr(config, name) for name in RESUMABLE_SETTINGS},
        usable=True,
        fleet=moment.fleet if branch.order == RECORDED else max(1, config.workers),
    )
    digest = None
    if job.has_residuals:
        digest = write_residuals(
            fork.folder.checkpoints, moment.version, snapshot.residuals or {}, job.dtype
        )
    model = replace(fork.model(job, snapshot, place), residuals=digest)
    end = begin_fork(fork.folder.path, moment.mark, Forked(moment.version, fork.first))
    _note_seconds(fork, branch.parent, moment, position.examples_seen)
    write_checkpoint(fork.folder.checkpoints, model)
    fleet = moment.fleet if branch.order == RECORDED else None
    return Start(replace(snapshot, position=position), ledger, end, fleet)


def _forked_snapshot(moment: Moment, job: Job, reporter: Reporter) -> Snapshot:
    """The server with the state that the update rule of the fork knows."""
    before = moment.snapshot
    rule = job.update_rule(before.weights)
    state: dict[str, Floats] = {}
    for name, zeros in rule.state.items():
        state[name] = before.state.get(name, np.zeros_like(zeros))
    dropped = sorted(set(before.state) - set(state))
    missing = sorted(set(state) - set(before.state))
    if dropped:
        reporter.notice(f"{job.optimizer} has no {' and '.join(dropped)}, which is dropped")
    if missing:
        reporter.notice(f"{' and '.join(missing)} of {job.optimizer} starts from zero")
    residuals = before.residuals if job.has_residuals else {}
    return replace(before, state=state, residuals=residuals)


def _note_seconds(fork: OpenedRun, parent: OpenedRun, moment: Moment, examples: int) -> None:
    """The time of training goes on from that of the parent."""
    try:
        seconds = seconds_of_steps(parent.folder.path / "metrics.jsonl", examples)
    except RunError:  # which is only displayed
        seconds = 0.0
    metrics = MetricsWriter(fork.folder.path / "metrics.jsonl")
    metrics.write({
        "kind": "forked", "step": moment.version, "examples_seen": examples, "seconds": seconds,
    })  # fmt: skip
    metrics.close()


def _summary(branch: _Branch) -> str:
    """What is about to be trained, in one line."""
    changed = ", ".join(
        f"{name} {getattr(branch.moment.config, name)} -> {getattr(branch.config, name)}"
        for name in branch.changes
    )
    recorded = ", in the recorded order" if branch.order == RECORDED else ""
    return (
        f"fork of {_parent(branch).name} after update {branch.moment.version}: "
        f"{changed or 'no setting changed'}{recorded}"
    )
