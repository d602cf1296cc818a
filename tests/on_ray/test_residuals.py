"""The residuals of error feedback are part of a snapshot, exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import Floats
from distsgd.core.messages import (
    INCARNATION,
    Applied,
    Decision,
    Grant,
    Lease,
    ResidualReport,
    ResidualRequest,
)
from distsgd.core.model import initial_weights
from distsgd.core.optim import ErrorFeedback, Residual, shared_out
from distsgd.core.server import Ledger, Position
from distsgd.data.dataset import Dataset
from distsgd.engine.events import Ended, EpochEnded, Notice, Progress
from distsgd.engine.inline import train_inline
from distsgd.engine.job import Job, Snapshot, snapshot
from distsgd.engine.snapshots import HeldEvents
from distsgd.engine.worker import Worker
from distsgd.on_ray.driver import train_on_ray
from distsgd.proof.replay import replay
from distsgd.proof.replayer import Replayer
from distsgd.runs.checkpoint import weights_sha256
from distsgd.runs.journal import Entry, Record, Resumed
from distsgd.runs.opened_run import open_run
from distsgd.training import train


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
    assert first.residuals and first.residuals[0].values is not None
    assert run_on(job, first)[-1].weights.tobytes() == last.weights.tobytes()
    without = run_on(job, replace(first, residuals={}))[-1]
    assert without.weights.tobytes() != last.weights.tobytes()


@pytest.mark.ray
@pytest.mark.parametrize(("policy", "channel"), [("bsp", "ray"), ("ssp", "shm")])
def test_each_worker_tells_what_it_has_left(
    policy: str, channel: str, sample: Dataset, shared_ray: None
) -> None:
    """With every snapshot that a run can resume from comes what each worker has left over."""
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
    for one in found:
        if policy == "ssp" and one is not found[-1] and not one.usable:
            continue  # an epoch that ends while a worker is late
        assert one.residuals is not None and sorted(one.residuals) == [0, 1, 2]
        assert all(values is not None and values.any() for _, values in one.residuals.values())


@pytest.mark.ray
def test_a_stopped_run_keeps_them_too(sample: Dataset, shared_ray: None) -> None:
    job, start = a_job(sample, 2, compress="onebit", log_every=1)
    seen: list[Progress] = []
    for event in train_on_ray(job, start, 2, lambda: len(seen) > 2):
        if isinstance(event, Progress):
            seen.append(event)
    assert isinstance(event, Ended) and not event.finished
    assert sorted(event.snapshot.residuals or {}) == [0, 1]


def test_another_number_of_workers_shares_them_out(sample: Dataset) -> None:
    job, start = a_job(sample, compress="onebit")
    one = np.ones(job.parameters, dtype=np.float32)
    start = replace(start, residuals={n: Residual(7, one * 10**n) for n in range(4)})
    shared = [job.feedback(start, worker, 2) for worker in range(3)]
    assert [feedback.left(0)[0] for feedback in shared if feedback] == [101, 1010, 0]
    known = shared_out(start.residuals or {}, 2)
    assert [residual.serial for residual in known.values()] == [INCARNATION] * 4
    assert [residual.values is None for residual in known.values()] == [False, False, True, True]


def test_a_snapshot_waits_for_its_workers_but_not_for_ever() -> None:
    held, left = HeldEvents(), np.ones(3)
    event = EpochEnded(0, 1.0, 0.5, 1.0, Snapshot(7, np.zeros(3), {}))
    held.add(event, {0: 4, 1: 2}, 10.0)
    held.add(Progress(1, 0, 1.0, 0.1, 0.1, 1, 1.0), {}, 10.0)
    assert not held.ready(10.1) and held.take(10.1) == []
    assert held.request(0) == ResidualRequest(4) and held.request(2) is None
    held.reported(0, ResidualReport(4, left))
    assert held.request(0) is None and not held.ready(10.1)
    held.lost(1)
    (first,), (second,) = held.take(10.1), held.take(10.1)
    assert isinstance(first, EpochEnded) and first.snapshot.residuals is None
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


@pytest.mark.parametrize(("bytes_", "most"), [(8 * 2**24, 2), (2**20, 64)])
def test_epochs_that_wait_take_a_bounded_memory(bytes_: int, most: int) -> None:
    """Of a large W few wait, of a small one 64."""
    held = HeldEvents()
    weights = np.broadcast_to(np.zeros(1), bytes_ // 8)  # of this length, without the memory
    for epoch in range(200):
        held.add(EpochEnded(epoch, 1.0, 0.5, 1.0, Snapshot(epoch, weights, {})), {}, 0.0)
    found = [event for _ in range(200) for event in held.take(0.0)]
    epochs = [event.epoch for event in found if isinstance(event, EpochEnded)]
    assert most // 2 <= len(epochs) <= most and epochs[-1] == 199


class Members:
    """Several workers and their server in one process, who do anything in any order."""

    def __init__(
        self, job: Job, start: Snapshot, workers: int, random: Random, *, deaths: float = 0.05,
        looks: bool = True,
    ) -> None:  # fmt: skip
        self.job, self.random, self._deaths, self._looks = job, random, deaths, looks
        self.server = job.coordinator(start, own_places=not deaths)
        self._worker = Worker(job)
        self._feedback = {n: job.feedback(start, n, workers) for n in range(workers)}
        self._before = shared_out(start.residuals or {}, workers)
        self._asking = list(range(workers))
        self._held: dict[int, tuple[Lease, Floats]] = {}
        self.updates: list[Applied] = []
        self.snapshots: list[Snapshot] = []
        for worker in range(workers):
            self.server.joined(worker)

    def play(self, most: int) -> None:
        """Make updates, with a snapshot after each that can have one, until there are so many."""
        while not self.server.finished and len(self.updates) < most:
            if self._asking and (not self._held or self.random.random() < 0.7):
                worker = self._asking.pop(self.random.randrange(len(self._asking)))
                self._follow(self.server.pull(worker))
                continue
            worker = self.random.choice(sorted(self._held))
            if self.random.random() < self._deaths:
                self._die(worker)
            else:
                self._answer(worker)

    def _die(self, worker: int) -> None:
        """Its place is taken by another at once, without a residual."""
        del self._held[worker]
        had = worker in (self.server.residual_serials() or {})
        self._follow(self.server.lost(worker))
        assert not had or self.server.residual_serials() is None  # it is not asked in vain
        codec = self.job.codec()
        assert codec is not None
        zeros = np.zeros(self.job.parameters, dtype=self.job.dtype)
        self._feedback[worker] = ErrorFeedback(codec, zeros, serial=0)
        self._asking.append(worker)

    def _answer(self, worker: int) -> None:
        lease, weights = self._held.pop(worker)
        self._worker.feedback = self._feedback[worker]
        push = self._worker.answer(lease, weights)
        self._follow(self.server.push(worker, push))
        self._asking.append(worker)

    def _follow(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Grant):
                self._held[decision.worker] = (decision.lease, self.server.weights.copy())
            elif isinstance(decision, Applied):
                self.updates.append(decision)
        if self._looks and decisions and isinstance(decisions[0], Applied):
            self._look()

    def _look(self) -> None:
        serials = self.server.residual_serials()
        if serials is None:
            return
        feedback = self._feedback
        found = {
            n: Residual(serial, one.left(serial).copy())
            for n, serial in serials.items()
            if (one := feedback[n]) is not None
        }
        held = {lease.version: weights for lease, weights in self._held.values()}
        self.snapshots.append(
            replace(snapshot(self.server), residuals={**self._before, **found}, reads=held)
        )


def same(one: Snapshot, other: Snapshot) -> bool:
    """Whether two snapshots have the same bits."""
    residuals = [
        [
            (worker, residual.serial, None if values is None else values.tobytes())
            for worker, residual in sorted((found.residuals or {}).items())
            for values in [residual.values]
        ]
        for found in (one, other)
    ]
    return one.weights.tobytes() == other.weights.tobytes() and residuals[0] == residuals[1]


@pytest.mark.parametrize("policy", ["bsp", "ssp", "asp", "backup", "local"])
def test_any_snapshot_of_a_fleet_leads_to_the_same_end(policy: str, sample: Dataset) -> None:
    """The journal after it gives the W and the residuals that workers had, whoever died.

    Also when another fleet has gone on, of another size, which died with its driver again.
    """
    numbers: dict[str, Any] = {"ssp": {"staleness": 2}, "local": {"local_steps": 2}}.get(policy, {})
    config = TrainConfig(
        dataset="sample", epochs=2, batch_size=250, slot_size=50, consistency=policy,
        compress="topk:0.01", workers=3, **numbers,
    )  # fmt: skip
    job, random, looked = make_job(config, sample), Random(policy), 0
    first = job.architecture.initial(0, 1e-4, job.dtype)
    start = Snapshot(0, first, {})
    entries: list[Entry] = []
    seen: list[tuple[int, Snapshot]] = []
    ledger = Ledger()
    for workers in (3, 2, 4):
        entries.append(Resumed(start.version, 2, workers, 1, "auto"))
        before = len(entries)
        members = Members(job, start, workers, random)
        members.play(4 if workers < 4 else 1000)
        entries += [Record(u.version, u.step, u.contributions, u.requeued) for u in members.updates]
        for found in members.snapshots:
            seen.append((before + found.version - start.version, found))
        for update in members.updates:
            ledger.add(job.plan, update)
        replayer = Replayer(config, sample, Snapshot(0, first, {}))
        for _ in replayer.versions(entries):
            pass
        start = replace(replayer.snapshot(), position=ledger.position(job.plan, job.policy))
        assert start.weights.tobytes() == members.server.weights.tobytes()
    for place, found in seen:
        reads = {v: w for v, w in found.reads.items() if v != found.version}
        replayer = Replayer(config, sample, replace(found, reads=reads))
        for _ in replayer.versions(entries[place:]):
            pass
        assert same(replace(replayer.snapshot(), position=Position(0, 0)), start)
        looked += 1
    assert looked >= 5


@pytest.mark.parametrize("policy", ["bsp", "local"])
def test_the_bits_of_a_fleet_are_those_of_one_in_which_all_died(
    policy: str, sample: Dataset
) -> None:
    """Whoever comes first, also where a minibatch has fewer pieces than there are workers."""
    config = TrainConfig(
        dataset="sample", epochs=2, batch_size=350, slot_size=50, consistency=policy,
        compress="onebit", workers=3, local_steps=2 if policy == "local" else None,
    )  # fmt: skip
    job = make_job(config, sample)
    first = job.architecture.initial(0, 1e-4, job.dtype)
    found = set()
    for seed, dies in ((0, 1000), (1, 1000), (2, 1), (3, 3)):
        start, ledger, entries = Snapshot(0, first, {}), Ledger(), list[Entry]()
        while True:
            members = Members(job, start, 3, Random(seed), deaths=0.0)
            members.play(dies)
            entries += [
                Record(u.version, u.step, u.contributions, u.requeued) for u in members.updates
            ]
            if members.server.finished:
                break
            for update in members.updates:
                ledger.add(job.plan, update)
            entries.append(Resumed(members.server.version, 2, 3, 1, "auto"))
            replayer = Replayer(config, sample, Snapshot(0, first, {}))
            for _ in replayer.versions(entries):
                pass
            start = replace(replayer.snapshot(), position=ledger.position(job.plan, job.policy))
        found.add(members.server.weights.tobytes())
    assert len(found) == 1


@pytest.mark.ray
def test_the_bits_are_the_same_whoever_dies(
    sample: Dataset, shared_ray: None, tmp_path: Path
) -> None:
    """A worker takes its residual with it, a server W: all go on together from the last update."""
    result = train(
        "sample", workers=2, epochs=30, compress="onebit", run_dir=tmp_path / "run",
        chaos="kill-worker:at=50,kill-server:at=110",
    )  # fmt: skip
    assert result.chaos is not None
    assert result.chaos.faults == {"kill-worker": 1, "kill-server": 1}
    job = make_job(open_run(tmp_path / "run").origin, sample)
    first = job.architecture.initial(0, 1e-4, job.dtype)
    undisturbed = Members(job, Snapshot(0, first, {}), 2, Random(0), deaths=0.0, looks=False)
    undisturbed.play(1000)
    kept = job.architecture.unpad(undisturbed.server.weights)
    assert weights_sha256(kept) == result.weights_sha256
    assert replay(tmp_path / "run").weights_sha256 == result.weights_sha256
