"""Deaths of workers and errors in them, on a real Ray."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.model import initial_weights
from distsgd.data.dataset import Dataset
from distsgd.engine.events import Ended, Event, FleetReport, Happened, Notice, Progress
from distsgd.engine.inline import train_inline
from distsgd.engine.job import Job, Snapshot
from distsgd.errors import DatasetError, DivergedError, RuntimeFailure, ServerLost
from distsgd.on_ray import driver as ray_runtime
from distsgd.on_ray.fleet import Fleet
from distsgd.training import train

pytestmark = pytest.mark.ray


def a_job(sample: Dataset, epochs: int = 10) -> tuple[Job, Snapshot]:
    config = TrainConfig(dataset="sample", epochs=epochs, log_every=1, batch_size=128)
    job = make_job(config, sample)
    return job, Snapshot(0, initial_weights(0, job.classes, job.features, 1e-4, job.dtype), {})


def never() -> bool:
    return False


def last(events: Any) -> Event:
    *_, event = events
    return event


def in_peace(job: Job, start: Snapshot) -> Event:
    """How it ends in one process; on one thread of BLAS as in the workers, since on some
    processors the bits depend on their number."""
    with threadpool_limits(1):
        return last(train_inline(job, start, never))


class ProcessIds:
    """Notes the process ids of the actors that a training starts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self.workers = 0, list[int]()
        start, start_work = ray_runtime._start_servers, Fleet.start_work

        def noting_servers(*arguments: Any) -> list[Any]:
            servers = start(*arguments)
            self.server = process_id(servers[0])
            return servers

        def noting_workers(fleet: Fleet) -> None:
            self.workers = [process_id(actor) for actor in fleet.actors]
            start_work(fleet)

        monkeypatch.setattr(ray_runtime, "_start_servers", noting_servers)
        monkeypatch.setattr(Fleet, "start_work", noting_workers)


def process_id(actor: Any) -> int:
    import ray

    return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())))


def test_when_all_workers_die_others_take_their_places(
    sample: Dataset, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, start = a_job(sample)
    ids = ProcessIds(monkeypatch)
    events = ray_runtime.train_on_ray(job, start, 2, never)
    next(event for event in events if isinstance(event, Progress) and event.step >= 10)
    for pid in ids.workers:
        os.kill(pid, signal.SIGKILL)
    following = list(events)
    ended, happened = following[-1], [e for e in following if isinstance(e, Happened)]
    undisturbed = in_peace(job, start)
    assert isinstance(ended, Ended) and isinstance(undisturbed, Ended)
    assert [one.kind for one in happened].count("death") == 2
    assert happened[-1].kind == "replaced"
    reports = [event for event in following if isinstance(event, FleetReport)]
    assert set(reports[-1].workers) == {0, 1}
    images = sum(one.images for one in reports[-1].workers.values())
    assert images == job.plan.examples * job.plan.epochs
    assert np.array_equal(ended.snapshot.weights, undisturbed.snapshot.weights)


def test_a_worker_that_hangs_is_not_waited_for(
    sample: Dataset, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, start = a_job(sample, epochs=60)
    ids = ProcessIds(monkeypatch)
    events = ray_runtime.train_on_ray(job, start, 2, never)
    next(event for event in events if isinstance(event, Progress) and event.step >= 10)
    os.kill(ids.workers[1], signal.SIGSTOP)
    ended = last(events)
    undisturbed = in_peace(job, start)
    assert isinstance(ended, Ended) and isinstance(undisturbed, Ended)
    assert np.array_equal(ended.snapshot.weights, undisturbed.snapshot.weights)


def begun(
    sample: Dataset, monkeypatch: pytest.MonkeyPatch, workers: int
) -> tuple[Job, Snapshot, ProcessIds, Iterator[Event]]:
    """A training after ten updates, whose workers may not hang for long."""
    job, start = a_job(sample, epochs=60)
    job = replace(job, hang_seconds=1.5)
    ids = ProcessIds(monkeypatch)
    events = ray_runtime.train_on_ray(job, start, workers, never, "tcp")
    next(event for event in events if isinstance(event, Progress) and event.step >= 10)
    return job, start, ids, events


def test_a_sole_worker_that_hangs_is_replaced_and_ended(
    sample: Dataset, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, start, ids, events = begun(sample, monkeypatch, 1)
    os.kill(ids.workers[0], signal.SIGSTOP)
    rest = list(events)
    assert any("worker 0 does not answer" in event.text for event in rest_notices(rest))
    with pytest.raises(ProcessLookupError):
        os.kill(ids.workers[0], 0)
    same_as_undisturbed(job, start, rest[-1])


def test_a_worker_killed_before_all_are_connected_is_replaced(
    sample: Dataset, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, start = a_job(sample)
    connect_all, killed = Fleet.connect_all, list[int]()

    def killing(fleet: Fleet, contacts: list[Any]) -> None:
        killed.append(process_id(fleet.actors[1]))
        os.kill(killed[0], signal.SIGKILL)
        connect_all(fleet, contacts)

    monkeypatch.setattr(Fleet, "connect_all", killing)
    ids = ProcessIds(monkeypatch)
    same_as_undisturbed(job, start, last(ray_runtime.train_on_ray(job, start, 3, never)))
    assert len(ids.workers) == 3 and killed[0] not in ids.workers


def rest_notices(events: list[Event]) -> list[Notice]:
    return [event for event in events if isinstance(event, Notice)]


def same_as_undisturbed(job: Job, start: Snapshot, ended: Event) -> None:
    undisturbed = in_peace(job, start)
    assert isinstance(ended, Ended) and isinstance(undisturbed, Ended)
    assert np.array_equal(ended.snapshot.weights, undisturbed.snapshot.weights)
    assert ended.examples_seen == undisturbed.examples_seen


def test_workers_that_die_again_and_again_are_given_up(
    sample: Dataset, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, start = a_job(sample)

    class Dying:  # defined here, so that it travels by value
        def __init__(self, *_: Any) -> None: ...

        def open(self) -> None: ...

        def connect(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ray_runtime, "WorkerProcess", Dying)
    with pytest.raises(RuntimeFailure, match="die repeatedly"):
        last(ray_runtime.train_on_ray(job, start, 1, never))


def test_a_dead_server_is_told(
    sample: Dataset, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, start = a_job(sample, epochs=1000)
    ids = ProcessIds(monkeypatch)
    events = ray_runtime.train_on_ray(job, start, 2, never)
    next(event for event in events if isinstance(event, Progress))
    os.kill(ids.server, signal.SIGKILL)
    with pytest.raises(ServerLost, match="died"):
        last(events)


def test_our_errors_come_through_from_a_worker(
    sample: Dataset, shared_ray: None, tmp_path: Path
) -> None:
    job, start = a_job(sample)
    job = Job(**{**vars(job), "folder": (gone := str(tmp_path / "gone")), "dataset": gone})
    with pytest.raises(DatasetError, match="no dataset at"):
        last(ray_runtime.train_on_ray(job, start, 2, never))


def test_a_request_to_stop_ends_at_a_whole_update(sample: Dataset, shared_ray: None) -> None:
    job, start = a_job(sample, epochs=1000)
    steps: list[int] = []
    for event in ray_runtime.train_on_ray(job, start, 2, lambda: bool(steps)):
        if isinstance(event, Progress):
            steps.append(event.step)
    assert isinstance(event, Ended)
    assert not event.finished
    assert event.examples_seen == sum(job.plan.batch_examples(s) for s in range(steps[-1]))
    assert event.snapshot.version == steps[-1]


def test_a_training_that_diverges(shared_ray: None, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(DivergedError, match="Lower the learning rate"):
        train(dataset="sample", workers=2, loss="svm", learning_rate=1e30, run_dir=folder)
    assert json.loads((folder / "report.json").read_text())["status"] == "diverged"
    assert (folder / "checkpoints" / "step-000000000.npz").exists()
