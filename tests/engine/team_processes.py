"""A training by worker processes that share memory with a server in this process, without Ray."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from support import PATIENCE, wait_for

from distsgd.config.jobs import first_weights, make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.messages import Applied, Decision, Grant, Message
from distsgd.core.optim import Updater, make_optimizer
from distsgd.core.server.position import Ledger
from distsgd.core.server.update_check import UpdateCheck
from distsgd.data.dataset import open_dataset
from distsgd.engine.blas import keep_one_blas_thread
from distsgd.engine.events import Ended, EpochEnded, Event, Saved, Updated, UpdatedByTeam
from distsgd.engine.inline import train_inline
from distsgd.engine.job import Job, Snapshot, snapshot
from distsgd.engine.server_host import ServerHost
from distsgd.engine.team import FailPoint
from distsgd.engine.team_turns import join_team
from distsgd.engine.worker import Worker, work
from distsgd.errors import ChannelClosed
from distsgd.transport.base import Membership
from distsgd.transport.connections import SharedMemoryChannel
from distsgd.transport.framing import Shape
from distsgd.transport.port import Address, Port
from distsgd.transport.team_memory import PID

__all__ = ["Fail", "Nursery", "Training", "job_and_start", "nursery"]


@dataclass(frozen=True)
class Fail:
    """Where a worker is to send itself a signal.

    Attributes:
        word: one of `distsgd.engine.team.WORDS`.
        after: updates that it has made in a team before.
        signal: which.
        members: workers that the team has at least.
    """

    word: str
    after: int = 2
    signal: int = signal.SIGKILL
    members: int = 2


@dataclass(frozen=True)
class _Order:
    """A worker that is to be born."""

    job: Job
    number: int
    incarnation: int
    address: Address
    fail: Fail | None


def job_and_start(**settings: object) -> tuple[Job, Snapshot]:
    """A job on the embedded images, and where it begins."""
    config = TrainConfig(dataset="sample", **settings)  # type: ignore[arg-type]
    job = make_job(config, open_dataset("sample"))
    return job, Snapshot(0, first_weights(config, job), {})


def shape_of(job: Job) -> Shape:
    parameters = job.parameters
    return Shape(parameters, job.dtype, job.plan.most_slots, job.most_losses, parameters)


class Nursery:
    """A process that has loaded all that a worker needs, and forks workers: that takes no time."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=_bear, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def bear(self, order: _Order) -> int:
        """Have a worker born; returns its process."""
        self._orders.send(order)
        pid = self._orders.recv()
        assert isinstance(pid, int)
        return pid

    def close(self) -> None:
        self._orders.close()
        self._process.join(PATIENCE)


@contextmanager
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    try:
        yield found
    finally:
        found.close()


def _bear(orders: Connection) -> None:
    keep_one_blas_thread()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    workers: dict[bytes, Worker] = {}
    while True:
        try:
            order = orders.recv()
        except EOFError:
            return
        key = repr(order.job).encode()
        if key not in workers:
            workers[key] = Worker(order.job)
        if (pid := os.fork()) == 0:
            _live(order, workers[key])
        orders.send(pid)


def _live(order: _Order, worker: Worker) -> None:
    """All that a worker does; this process ends with it."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        shape = shape_of(order.job)
        channel = SharedMemoryChannel(order.address, order.number, shape, order.incarnation)
        fail = _failing(order.fail) if order.fail else None

        def join(place: Membership) -> int:
            enough = order.fail and place.memory.shape.members >= order.fail.members
            here = fail if enough else None
            return join_team(order.job, worker, place, channel.descriptor or 0, here)

        work(worker, channel, join)
        code = 0
    except ChannelClosed:
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _failing(fail: Fail) -> FailPoint:
    seen = set[int]()
    done = list[int]()

    def look(word: str, version: int) -> None:
        seen.add(version)
        if word == fail.word and len(seen) > fail.after and not done:
            done.append(version)
            os.kill(os.getpid(), fail.signal)

    return look


@dataclass
class Training:
    """A server and its workers.

    Args:
        nursery: where workers come from.
        job: what is trained.
        start: where it begins.
        workers: how many.
    """

    nursery: Nursery
    job: Job
    start: Snapshot
    workers: int
    events: list[Event] = field(default_factory=list)
    pids: dict[int, int] = field(default_factory=dict)
    version: int = 0
    ended: Ended | None = None

    def __enter__(self) -> Training:
        self._incarnations = dict.fromkeys(range(self.workers), 0)
        self._closed, self._handles = False, dict[int, int]()
        self.host = host = ServerHost(self.job, self.start, self.workers)
        self._all_are_there, submit = threading.Event(), host.submit

        def submit_later(worker: int, message: Message | None, size: int) -> None:
            self._all_are_there.wait(PATIENCE)
            submit(worker, message, size)

        host.submit = submit_later  # type: ignore[method-assign]
        everything = slice(0, self.job.parameters)
        decode = partial(self.job.decode, part=everything)
        self.port = Port(self.host, shape_of(self.job), decode)
        return self

    def close(self) -> None:
        """Stop listening, and close the connections: to workers, the server has gone."""
        if not self._closed:
            self._closed = True
            self.port.close()

    def __exit__(self, *error: object) -> None:
        self.close()
        for number in self.pids:
            self.kill(number)
        wait_for(lambda: all(self.state(number) == "X" for number in self.pids))
        for handle in self._handles.values():
            os.close(handle)

    def begin(self) -> None:
        """Start all workers; they get work when all are connected."""
        for number in range(self.workers):
            self.bear(number)
        wait_for(lambda: len(self.host._attached) == self.workers)
        self._all_are_there.set()

    def bear(self, number: int, fail: Fail | None = None) -> None:
        """Start a worker, or replace it."""
        incarnation = self._incarnations[number] = self._incarnations.get(number, 0) + 1
        order = _Order(self.job, number, incarnation, self.port.address, fail)
        if (before := self._handles.pop(number, None)) is not None:
            os.close(before)
        self.pids[number] = self.nursery.bear(order)
        with suppress(ProcessLookupError):  # it has ended already
            self._handles[number] = os.pidfd_open(self.pids[number])

    def state(self, number: int) -> str:
        """The state of a worker's process as /proc has it; X where there is none."""
        try:
            found = Path(f"/proc/{self.pids[number]}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return "X"
        return found.rpartition(")")[2].split()[0]

    def kill(self, number: int, what: int = signal.SIGKILL) -> None:
        """Send a worker's process a signal, if there still is one; no other can have its number."""
        with suppress(ProcessLookupError, KeyError):
            signal.pidfd_send_signal(self._handles[number], what)

    def look(self, seconds: float = 0.002) -> list[Event]:
        """Take the events of the server."""
        found = self.host.events(seconds)
        for event in found:
            if isinstance(event, Updated):
                self.version = event.update.version
            elif isinstance(event, UpdatedByTeam):
                self.version = event.stretch.end
            elif isinstance(event, Ended):
                self.ended = event
        self.events += found
        return found

    def wait(self, number: int, state: str) -> None:
        """Wait until a worker's process is in a state, see `state`."""
        self.wait_for(lambda: self.state(number) == state)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait, and take events meanwhile."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < PATIENCE, f"it stands at version {self.version}"
            self.look()

    def until(self, version: int) -> None:
        """Wait until the server knows of so many updates, or ends."""
        self.wait_for(lambda: self.version >= version or self.ended is not None)

    def finish(self) -> Ended:
        """Wait for the end."""
        self.until(1 << 60)
        assert self.ended is not None
        return self.ended

    def updates(self) -> list[Applied]:
        """All updates, in order."""
        found: list[Applied] = []
        for event in self.events:
            if isinstance(event, Updated):
                found.append(event.update)
            elif isinstance(event, UpdatedByTeam):
                found += event.stretch.updates()
        return found

    @property
    def updates_by_team(self) -> list[Applied]:
        """Those that were made in teams."""
        stretches = [event.stretch for event in self.events if isinstance(event, UpdatedByTeam)]
        return [update for stretch in stretches for update in stretch.updates()]

    def of(self, kind: type[Event]) -> list[Event]:
        """The events of a kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def wait_for_teams(self, members: int) -> None:
        """Wait until a team of so many has made some updates that were not known before."""
        known = len(self.events)
        self.wait_for(
            lambda: any(
                isinstance(event, UpdatedByTeam)
                and event.stretch.answers.shape[1] == members
                and event.stretch.version > 0
                for event in self.events[known:]
            )
        )

    def is_inside(self, number: int) -> bool:
        """Whether a worker's present process works in a team of two at least."""
        team = self.host._team
        with self.host._lock:
            memory = team._memory
            if memory is None or team.revoked or memory.shape.members < 2:
                return False
            members = range(memory.shape.members)
            return self.pids[number] in [memory.words[memory.member(n) + PID] for n in members]

    def alone(self) -> Ended:
        """The end of the same training in one process."""
        *_, last = train_inline(self.job, self.start, lambda: False)
        assert isinstance(last, Ended)
        return last

    def check(self, fleet: int = 0) -> Ended:
        """The updates are those of the plan, each slot once, and W has the bits of one process."""
        ended = self.finish()
        check = UpdateCheck(self.job.plan, self.job.policy, Ledger(), fleet or self.workers)
        for update in self.updates():
            check.add(update)
        assert check.ledger.version == ended.snapshot.version
        assert ended.finished == (check.ledger.whole == self.job.plan.total_steps)
        kept = [event.snapshot for event in self.events if isinstance(event, EpochEnded | Saved)]
        if self.job.policy.in_order:
            same_as_alone(self.job, self.start, [*kept, ended.snapshot])
        else:
            same_again(self.job, self.start, self.updates(), [*kept, ended.snapshot])
        return ended


def same(one: Snapshot, other: Snapshot) -> None:
    """Two snapshots have the same bits."""
    assert one.version == other.version
    assert one.weights.tobytes() == other.weights.tobytes()
    assert one.state.keys() == other.state.keys()
    for name, array in one.state.items():
        assert np.array_equal(array, other.state[name])


def same_as_alone(job: Job, start: Snapshot, snapshots: Iterable[Snapshot]) -> None:
    """Snapshots are those that one process makes, which has no team."""
    wanted: dict[int, list[Snapshot]] = {}
    for found in snapshots:
        wanted.setdefault(found.version, []).append(found)
    server, worker = job.server(start), Worker(job)
    decisions: list[Decision] = []
    while wanted:
        for found in wanted.pop(server.version, []):
            same(found, snapshot(server))
        decisions = decisions or server.pull(0)
        decision = decisions.pop(0)
        if isinstance(decision, Grant):
            with np.errstate(all="ignore"):
                decisions += server.push(0, worker.answer(decision.lease, server.weights))


def same_again(
    job: Job, start: Snapshot, updates: Iterable[Applied], snapshots: Iterable[Snapshot]
) -> None:
    """Snapshots are those of these updates, each of one whole minibatch, one after another."""
    wanted: dict[int, list[Snapshot]] = {}
    for found in snapshots:
        wanted.setdefault(found.version, []).append(found)
    weights, worker = start.weights.copy(), Worker(job)
    optimizer = make_optimizer(job.optimizer, weights, job.momentum)
    updater = Updater(weights, decay=job.decay(), optimizer=optimizer, schedule=job.schedule)
    read = {0: weights.copy()}
    for update in updates:
        ((_, lease),) = update.contributions
        push = worker.answer(lease, read[lease.version])
        updater.apply(push.gradients[0].copy(), update.examples, update.step)
        read[update.version] = weights.copy()
        for found in wanted.pop(update.version, []):
            assert found.weights.tobytes() == weights.tobytes()
            for name, array in found.state.items():
                assert np.array_equal(array, optimizer.state[name])
    assert not wanted.keys() - {0}
