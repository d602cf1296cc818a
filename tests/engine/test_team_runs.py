"""Trainings by a team of real processes have the bits of one process, whatever comes between."""

from __future__ import annotations

import signal
from itertools import pairwise
from typing import Any

import pytest
from team_processes import Nursery, Training, job_and_start, same, same_as_alone

from distsgd.engine.events import EpochEnded, Saved, UpdateSampled
from distsgd.engine.job import Snapshot

SHORT: dict[str, Any] = {"epochs": 3, "batch_size": 70, "slot_size": 10, "log_every": 5}
ENDLESS = {**SHORT, "epochs": 10_000, "schedule": "constant"}

KINDS: dict[str, dict[str, Any]] = {
    "adam": {"optimizer": "adam"},
    "nesterov": {"optimizer": "nesterov", "dtype": "float64"},
    "local steps": {"consistency": "local", "local_steps": 3},
    "no order": {"consistency": "asp", "optimizer": "momentum"},
    "two layers": {"model": "mlp:10", "optimizer": "momentum"},
    "one slot": {"batch_size": 10},
    "svm": {"loss": "svm", "sampling": "random"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [2, 3])
def test_a_team_has_the_bits_of_one_process(births: Nursery, kind: str, workers: int) -> None:
    job, start = job_and_start(**{**SHORT, "workers": workers, **KINDS[kind]})
    with Training(births, job, start, workers) as training:
        training.begin()
        ended = training.check()
    assert ended.finished and training.updates_by_team
    ends = [event.snapshot for event in training.events if isinstance(event, EpochEnded)]
    every = job.plan.steps_per_epoch
    versions = [snapshot.version for snapshot in ends]
    assert versions[-1] == ended.snapshot.version and len(versions) == 3
    assert job.policy.local or versions == [every, 2 * every, 3 * every]


def test_snapshots_within_an_epoch_are_of_their_version(births: Nursery) -> None:
    job, start = job_and_start(**ENDLESS, optimizer="momentum", checkpoint_seconds=0.02)
    with Training(births, job, start, 2) as training:
        training.begin()
        training.wait_for(lambda: len(versions_saved(training)) > 3)
        training.host.stop()
        training.check()
    made = {update.version for update in training.updates_by_team}
    assert len(made & versions_saved(training)) > 1


def versions_saved(training: Training) -> set[int]:
    return {event.snapshot.version for event in training.events if isinstance(event, Saved)}


def test_sampled_updates_are_made_by_ordinary_leases(births: Nursery) -> None:
    job, start = job_and_start(**SHORT, verify=0.3)
    with Training(births, job, start, 2) as training:
        training.begin()
        training.check()
    sampled = training.of(UpdateSampled)
    assert sampled and 0 < len(training.updates_by_team) < len(training.updates())
    assert len(training.updates_by_team) + len(sampled) <= len(training.updates())
    seen: list[Snapshot] = []
    for event in sampled:
        assert isinstance(event, UpdateSampled)
        done, version = event.sampled, event.sampled.update.version
        seen += [Snapshot(version - 1, done.before, {}), Snapshot(version, done.after, {})]
    same_as_alone(job, start, seen)


def test_a_team_whose_weights_diverge_ends_as_one_process_does(births: Nursery) -> None:
    job, start = job_and_start(**SHORT, learning_rate=1e30)
    with Training(births, job, start, 2) as training:
        training.begin()
        ended = training.finish()
    alone = training.alone()
    assert ended.diverged is not None and ended.diverged == alone.diverged
    same(ended.snapshot, alone.snapshot)


def test_workers_come_and_go_while_a_team_works(births: Nursery) -> None:
    job, start = job_and_start(**ENDLESS, optimizer="adam")
    with Training(births, job, start, 1) as training:
        training.begin()
        for number in range(1, 4):
            training.wait_for_teams(number)
            training.bear(number)
        training.wait_for_teams(4)
        for number in (0, 2):
            training.kill(number)
            training.wait(number, "X")
            training.wait_for_teams(3 if number == 0 else 2)
        training.bear(0)
        training.wait_for_teams(3)
        training.host.stop()
        training.check(fleet=4)


def test_members_notice_that_the_server_has_gone(births: Nursery) -> None:
    """Also those that sleep: one member stops, so that the other waits for it."""
    job, start = job_and_start(**ENDLESS)
    with Training(births, job, start, 2) as training:
        training.begin()
        training.wait_for_teams(2)
        training.kill(0, signal.SIGSTOP)
        training.wait(0, "T")
        training.close()
        training.wait(1, "X")
        training.kill(0, signal.SIGCONT)
        training.wait(0, "X")


def test_a_team_stops_at_once(births: Nursery) -> None:
    job, start = job_and_start(**ENDLESS)
    with Training(births, job, start, 2) as training:
        training.begin()
        training.wait_for_teams(2)
        training.host.stop()
        ended = training.check()
        for number in (0, 1):
            training.wait(number, "X")
    assert not ended.finished and ended.statistics.updates == ended.snapshot.version
    assert all(one.version < other.version for one, other in pairwise(training.updates()))
