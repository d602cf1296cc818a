"""The server between its workers and the driver, with workers that are function calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from support import PATIENCE

from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.messages import Lease, Message, Push, ResidualReport, ResidualRequest
from distsgd.core.model import SlotLoss, initial_weights
from distsgd.core.reduction_tree import cover
from distsgd.data.dataset import open_dataset
from distsgd.engine.events import Ended, EpochEnded, Event, Hung, Notice, Saved, Updated
from distsgd.engine.job import Job, Snapshot
from distsgd.engine.server_host import ServerHost
from distsgd.transport.base import Reply


@pytest.fixture(scope="module")
def job() -> Job:
    """Two epochs of two minibatches of four slots."""
    config = TrainConfig(channel="shm", dataset="sample", epochs=2, batch_size=500, slot_size=125)
    found = make_job(config, open_dataset("sample"))
    return replace(found, plan=replace(found.plan, examples=1000))


def start_of(job: Job) -> Snapshot:
    return Snapshot(0, initial_weights(0, job.classes, job.features, 1e-4, job.dtype), {})


class Workers:
    """Workers that are attached to a host: what each has been given, and their answers."""

    def __init__(self, host: ServerHost, job: Job, numbers: range) -> None:
        self.host, self.job, self.stack = host, job, ExitStack()
        self.given: dict[int, list[Reply | None]] = {number: [] for number in numbers}
        for number in numbers:
            self.stack.enter_context(host.attached(number, self.given[number].append))

    def ask(self, worker: int) -> None:
        self.host.submit(worker, None, 0)

    def lease(self, worker: int) -> Lease:
        reply = self.given[worker][-1]
        assert reply is not None and not isinstance(reply, ResidualRequest)
        return reply[0]

    def push(self, worker: int, value: float = 1.0) -> None:
        lease = self.lease(worker)
        nodes = cover(lease.first, lease.last, self.job.plan.slots(lease.step))
        gradients = np.full((len(nodes), self.job.parameters), value, self.job.dtype)
        losses = tuple([SlotLoss(1.0, 1, 125)] * (lease.last - lease.first))
        self.host.submit(worker, Push(lease, losses, gradients), gradients.nbytes)


def of(kind: type, events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]


def test_workers_share_a_minibatch_until_all_are_dismissed(job: Job) -> None:
    host = ServerHost(job, start_of(job), 2)
    workers, events = Workers(host, job, range(2)), list[Event]()
    workers.ask(0)
    workers.ask(1)
    assert [workers.lease(worker).piece for worker in (0, 1)] == [(0, 0, 2), (0, 2, 4)]
    for _ in range(4):
        workers.push(0)
        workers.push(1)
        events += host.events(0)
    events += host.events(0)
    assert workers.given[0][-1] is None and workers.given[1][-1] is None
    assert isinstance(events[-1], Ended) and events[-1].snapshot.version == 4
    assert len(of(EpochEnded, events)) == 2
    assert events[-1].statistics.bytes_pushed == 8 * job.vector_bytes


def test_a_death_gives_its_slots_to_the_others_once(job: Job) -> None:
    host = ServerHost(job, start_of(job), 2)
    workers = Workers(host, job, range(2))
    workers.ask(0)
    workers.ask(1)
    workers.push(0)  # and waits for the other
    given = len(workers.given[0])
    host.lost(1, 1)
    assert len(workers.given[0]) == given + 1 and workers.lease(0).piece == (0, 2, 4)


@pytest.mark.parametrize("late", [True, False], ids=["late", "in time"])
def test_a_death_that_is_reported_twice_counts_once(job: Job, late: bool) -> None:
    """By the connection and by the driver; maybe when another has its number already."""
    host = ServerHost(job, start_of(job), 1)
    workers = Workers(host, job, range(1))
    host.arrived(0, 1)
    workers.ask(0)
    if not late:
        host.lost(0, 1)
    host.arrived(0, 2)  # which tells that the first is dead
    workers.ask(0)
    host.lost(0, 1)
    workers.push(0)
    assert workers.lease(0).step == 1, "the lease of the second was taken away"


def test_a_worker_that_dies_before_it_works_leaves_its_residual(job: Job) -> None:
    """To the one that replaces it; nobody waits for it once the driver has given it up."""
    job = replace(job, compress="onebit")
    host = ServerHost(job, start_of(job), 2)
    host.lost(1, 1)
    assert host._server.residual_serials() == {} and 1 not in host._gone
    host.give_up(1)
    assert 1 in host._gone


def test_a_snapshot_waits_for_the_residuals_of_its_workers(job: Job) -> None:
    job = replace(job, compress="onebit")
    host = ServerHost(job, start_of(job), 1)
    workers = Workers(host, job, range(1))
    workers.ask(0)
    codec = job.codec()
    assert codec is not None
    encoded = codec.encode(np.ones(job.parameters, job.dtype))
    for _ in range(2):
        lease = workers.lease(0)
        gradients = np.ones((1, job.parameters), job.dtype)
        losses = tuple([SlotLoss(1.0, 1, 125)] * (lease.last - lease.first))
        host.submit(0, Push(lease, losses, gradients, encoded), len(encoded))
    assert workers.given[0][-1] == ResidualRequest(2), "asked before it gets more work"
    assert not of(EpochEnded, host.events(0))
    report: Message = ResidualReport(2, np.full(job.parameters, 3, job.dtype))
    host.submit(0, report, 0)
    assert workers.lease(0).step == 2
    ended = of(EpochEnded, host.events(0))[0]
    assert isinstance(ended, EpochEnded) and ended.snapshot.residuals is not None
    assert ended.snapshot.residuals[0].serial == 2
    assert ended.snapshot.residuals[0].values is not None
    assert (ended.snapshot.residuals[0].values == 3).all()


def test_a_lease_that_is_overdue_goes_to_another_and_its_worker_is_said_to_hang(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("distsgd.engine.server_host.perf_counter", lambda: now[0])
    host = ServerHost(replace(job, hang_seconds=4.0), start_of(job), 2)
    workers = Workers(host, job, range(2))
    workers.ask(0)
    workers.ask(1)
    now[0] += 0.01
    workers.push(0)
    found: list[Event] = []
    for _ in range(3):
        now[0] += 2.0
        found += host.events(0)
    assert workers.lease(0).piece == (0, 2, 4), "the free worker has it too"
    assert Hung((0, 1)) in found or Hung((1,)) in found


def test_a_stop_dismisses_everyone_at_the_last_whole_update(job: Job) -> None:
    host = ServerHost(job, start_of(job), 2)
    workers = Workers(host, job, range(2))
    workers.ask(0)
    workers.ask(1)
    workers.push(0)
    host.stop()
    assert workers.given[0][-1] is None
    ended = host.events(0)[-1]
    assert isinstance(ended, Ended) and ended.snapshot.version == 0
    workers.push(1)
    assert workers.given[1][-1] is None


def test_snapshots_within_an_epoch_are_made_when_their_time_has_come(job: Job) -> None:
    host = ServerHost(replace(job, save_seconds=1e-9), start_of(job), 1)
    workers = Workers(host, job, range(1))
    workers.ask(0)
    workers.push(0)
    saved = of(Saved, host.events(0))
    assert saved and isinstance(saved[0], Saved) and saved[0].snapshot.version == 1


def test_an_error_in_an_exchange_reaches_the_driver(job: Job) -> None:
    host = ServerHost(job, start_of(job), 1)
    workers = Workers(host, job, range(1))
    workers.ask(0)
    lease = workers.lease(0)
    wrong = Push(lease, None, np.ones((1, 3), job.dtype))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        host.submit(0, wrong, 0)
    with pytest.raises(TypeError):
        host.events(0)


def test_a_refused_connection_is_reported(job: Job) -> None:
    host = ServerHost(job, start_of(job), 1)
    host.refused("10.0.0.9")
    (notice,) = of(Notice, host.events(0))
    assert isinstance(notice, Notice) and "10.0.0.9" in notice.text


def test_a_call_waits_for_work_and_ends_with_its_worker(job: Job) -> None:
    """As over TCP, where a thread waits for each worker."""
    host, found = ServerHost(job, start_of(job), 2), dict[int, Reply | None]()

    def call(worker: int) -> Callable[[], None]:
        return lambda: found.__setitem__(worker, host.exchange(worker, None, 0))

    threads = [threading.Thread(target=call(worker)) for worker in (0, 1)]
    for thread in threads:
        thread.start()
        thread.join(PATIENCE)
    assert all(reply is not None for reply in found.values())
    waiting = threading.Thread(target=call(2))  # all pieces are out: it waits
    waiting.start()
    host.lost(2, 1)
    waiting.join(PATIENCE)
    assert not waiting.is_alive() and found[2] is None


def test_updates_are_told_as_they_are_made(job: Job) -> None:
    host = ServerHost(replace(job, log_every=1), start_of(job), 1)
    workers = Workers(host, job, range(1))
    workers.ask(0)
    workers.push(0)
    updates = of(Updated, host.events(0))
    assert len(updates) == 1 and isinstance(updates[0], Updated)
    assert updates[0].update.version == 1
