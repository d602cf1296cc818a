"""What error feedback has not sent yet is part of a checkpoint, exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.api import train
from distsgd.api.jobs import make_job
from distsgd.core.initial import initial_weights, pad
from distsgd.core.messages import REPORT, Lease
from distsgd.data.dataset import Dataset
from distsgd.run.checkpoint import latest_checkpoint, read_checkpoint
from distsgd.run.config import TrainConfig
from distsgd.runtime.events import Ended, EpochEnded, Notice, Progress
from distsgd.runtime.held_events import HeldEvents
from distsgd.runtime.inline import train_inline
from distsgd.runtime.job import Job, Snapshot
from distsgd.runtime.ray_runtime import train_on_ray


def a_job(sample: Dataset, workers: int = 1, **settings: Any) -> tuple[Job, Snapshot]:
    config = TrainConfig(dataset="sample", epochs=3, workers=workers, **settings)
    job = make_job(config, sample)
    return job, Snapshot(0, initial_weights(0, job.classes, job.features, 1e-4, job.dtype), {})


def run_on(job: Job, start: Snapshot) -> list[Snapshot]:
    """The snapshots after each epoch, and the last."""
    events = train_inline(job, start, lambda: False)
    return [event.snapshot for event in events if isinstance(event, EpochEnded | Ended)]


@pytest.mark.parametrize("compress", ["topk:0.01", "onebit"])
@pytest.mark.parametrize("servers", [1, 3])
def test_going_on_from_a_snapshot_gives_the_same_bits(
    compress: str, servers: int, sample: Dataset
) -> None:
    job, start = a_job(sample, compress=compress, servers=servers, optimizer="momentum")
    first, *_, last = run_on(job, start)
    assert first.left_over[0].any()
    assert run_on(job, first)[-1].weights.tobytes() == last.weights.tobytes()
    without = run_on(job, replace(first, left_over={}))[-1]
    assert without.weights.tobytes() != last.weights.tobytes()


@pytest.mark.ray
@pytest.mark.parametrize(("policy", "channel"), [("bsp", "shm"), ("bsp", "ray"), ("ssp", "shm")])
def test_each_worker_tells_what_it_has_left(
    policy: str, channel: str, sample: Dataset, shared_ray: None
) -> None:
    """With every snapshot comes what each worker has left over."""
    settings = {"learning_rate": 0.01, "schedule": "constant", "regularization": 0.0}
    job, start = a_job(
        sample, 3, compress="topk:0.01", consistency=policy, dtype="float64", **settings
    )
    found = [
        event.snapshot
        for event in train_on_ray(job, start, 3, lambda: False, channel)
        if isinstance(event, EpochEnded | Ended)
    ]
    assert len(found) == 4
    for snapshot in found:
        assert sorted(snapshot.left_over) == [0, 1, 2]
        assert all(left.any() for left in snapshot.left_over.values())


@pytest.mark.ray
def test_a_stopped_run_keeps_them_too(sample: Dataset, shared_ray: None) -> None:
    job, start = a_job(sample, 2, compress="onebit", log_every=1)
    seen: list[Progress] = []
    for event in train_on_ray(job, start, 2, lambda: len(seen) > 2):
        if isinstance(event, Progress):
            seen.append(event)
    assert isinstance(event, Ended) and not event.finished
    assert sorted(event.snapshot.left_over) == [0, 1]


def test_a_checkpoint_holds_them(sample: Dataset) -> None:
    result = train("sample", workers=0, epochs=1, compress="topk:0.01")
    model = read_checkpoint(latest_checkpoint(Path(result.run_dir) / "checkpoints"))
    job, start = a_job(sample, compress="topk:0.01")
    del start
    assert model.left_over[0].shape == (10, 3073)
    assert pad(model.left_over[0]).size == job.parameters
    assert model.left_over[0].any()


def test_another_number_of_workers_shares_them_out(sample: Dataset) -> None:
    job, start = a_job(sample, compress="onebit")
    one = np.ones(job.parameters, dtype=np.float32)
    start = replace(start, left_over={n: one * 10**n for n in range(4)})
    shared = [job.feedback(start, worker, 2) for worker in range(2)]
    assert [feedback.left(0)[0] for feedback in shared if feedback] == [101, 1010]


def test_a_snapshot_waits_for_its_workers_but_not_for_ever() -> None:
    held, left = HeldEvents(), np.ones(3)
    event = EpochEnded(0, 1.0, 0.5, 1.0, Snapshot(7, np.zeros(3), {}))
    held.add(event, {0: 4, 1: 2}, 10.0)
    held.add(Progress(1, 0, 1.0, 0.1, 0.1, 1, 1.0), {}, 10.0)
    assert not held.ready(10.1) and held.take(10.1) == []
    assert held.question(0) == Lease(REPORT, 0, 1, 0, serial=4) and held.question(2) is None
    held.told(0, left)
    assert held.question(0) is None and not held.ready(10.1)
    held.lost(1)
    (first,), (second,) = held.take(10.1), held.take(10.1)
    assert isinstance(first, EpochEnded) and first.snapshot.left_over.keys() == {0}
    assert isinstance(second, Progress)
    held.add(event, {0: 4}, 20.0)
    assert not held.ready(20.5) and held.ready(21.0)


def test_a_driver_that_is_slow_gets_one_epoch_at_a_time_and_not_all_of_many() -> None:
    held = HeldEvents()
    for epoch in range(1000):
        held.add(Progress(epoch, epoch, 1.0, 0.1, 0.1, 1, 1.0), {}, 0.0)
        snapshot = Snapshot(epoch, np.zeros(3), {})
        held.add(EpochEnded(epoch, 1.0, 0.5, 1.0, snapshot), {}, 0.0)
    taken = []
    while found := held.take(0.0):
        taken.append(found)
    events = [event for found in taken for event in found]
    epochs = [event.epoch for event in events if isinstance(event, EpochEnded)]
    assert 32 <= len(epochs) <= 64 and epochs == sorted(epochs) and epochs[-1] == 999
    assert all(sum(isinstance(e, EpochEnded) for e in found) <= 1 for found in taken)
    assert sum(isinstance(event, Progress) for event in events) == 1000
    assert sum(isinstance(event, Notice) for event in events) == 1
