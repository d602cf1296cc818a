"""The worker actors of one training: connected, set to work, and replaced when they die.

Where a process is, so that one that hangs can be ended at once.

Ray asks a process to end, and uses force after 5 s: one that is stopped holds its CPU until then.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import ray

from distsgd.data.system import kill_if
from distsgd.engine.blas import SAME_BLAS, blas_kernel
from distsgd.engine.events import Notice
from distsgd.errors import ChannelClosed, DistsgdError, RuntimeFailure, WorkerLost
from distsgd.on_ray.health import DEAD, HINT, answer_of, cause_of, why_dead
from distsgd.on_ray.private import call_in_actor

__all__ = ["WAIT_SECONDS", "Fleet", "ProcessIdentity", "end_process", "process_identity"]


@dataclass(frozen=True)
class ProcessIdentity:
    """A process.

    Attributes:
        machine: boot and namespace in which its number means something.
        pid: its number.
        started: when it was started, in ticks since the boot; numbers are used again.
    """

    machine: str
    pid: int
    started: str


def process_identity(_: object = None) -> ProcessIdentity:
    """Those of this process."""
    return ProcessIdentity(_machine(), os.getpid(), _started(os.getpid()))


def end_process(place: ProcessIdentity) -> bool:
    """SIGKILL a process of this machine; returns whether it was here, and still the same."""
    with suppress(OSError):
        if place.machine == _machine():
            return kill_if(place.pid, lambda: place.started == _started(place.pid))
    return False


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> str:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return stat.rpartition(")")[2].split()[19]


_MOST_FAILURES = 5
_SECONDS_UNSAID = 5.0
_SECONDS_FOR_ALL = 10.0
WAIT_SECONDS = 120.0
"""How long to wait for a worker when there is none."""


class Fleet:
    """Workers by their numbers.

    Args:
        make: starts the actor of a worker; twice, if the first has died.
        channel: by which channel a worker reaches the servers.
        coordinator: the actor of the first server, which is told of deaths.
        workers: how many there are.
        patience: seconds to wait without a single worker.
        room: how many of them there are CPUs for at all; None if that is not known.
        together: whether a worker that was at work cannot be replaced alone, as what it knows is
            lost with it.

    Attributes:
        names: worker -> name of its channel, once it is connected.
        hosts: worker -> address of its node, likewise.
        contacts: how they reach the servers.
        begun: whether they have been set to work.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        channel: str,
        coordinator: Any,
        workers: int,
        patience: float,
        room: int | None = None,
        together: bool = False,
    ) -> None:
        self._make, self._coordinator = make, coordinator
        self._patience, self._room = patience, room
        self._channel, self.contacts, self._together = channel, list[Any](), together
        self.names: dict[int, str] = {}
        self.hosts: dict[int, str] = {}
        self.begun = False
        self._actors: dict[int, Any] = {}
        self._places: dict[int, Any] = {}
        self._connecting: dict[Any, int] = {}
        self._ready: dict[int, float] = {}  # connected, but not yet at work: since when
        self._running: dict[Any, int] = {}
        self._incarnations = defaultdict[int, int](lambda: 1)
        self._failures = 0
        self._alone_since: float | None = None
        self._said = False
        self._blas = {blas_kernel()}
        self._to_say: list[Notice] = []
        for worker in range(workers):
            self._actors[worker] = make(worker)

    @property
    def actors(self) -> list[Any]:
        """The actors there are, dead ones that have not been replaced yet included."""
        return list(self._actors.values())

    @property
    def pending(self) -> list[Any]:
        """The calls whose end `ended` wants to be told."""
        return [*self._connecting, *self._running]

    def connect_all(self, contacts: list[Any]) -> None:
        """Have every worker connect; `ended` is told when one has.

        Args:
            contacts: how a worker reaches the servers.
        """
        self.contacts = contacts
        for worker in self._actors:
            self._connect(worker)

    def enough(self) -> bool:
        """Whether to begin: with all, so that none begins long before the others.

        Or with those who are there, if there is no room for the others, or they have not come for
        some time.
        """
        full = self._room is not None and len(self._ready) >= self._room
        late = self._waited() > _SECONDS_FOR_ALL
        return bool(self._ready) and (not self._connecting or full or late)

    def _waited(self) -> float:
        """Seconds since the first worker was ready to begin."""
        first = min(self._ready.values(), default=None)
        return 0.0 if first is None else monotonic() - first

    def start_work(self) -> str | None:
        """Those who are connected begin; returns what there is to say of the others."""
        self.begun = True
        there, every = len(self._ready), len(self._actors)
        if self._together and there < every:  # nobody waits for what is theirs
            missing = self._actors.keys() - self._ready.keys()
            answer_of([self._coordinator.give_up.remote(worker) for worker in missing])
        for worker in self._ready:
            self._run(worker)
        self._ready.clear()
        if there == every:
            return None
        return f"{there} of {every} workers are there; the others join as soon as there is room"

    def ended(self, reference: Any) -> None:
        """A call has ended: a worker is connected, has no more work, or has died.

        Raises:
            ServerLost: a worker has lost its server, which is dead.
            WorkerLost: a worker has died that cannot be replaced alone.
            RuntimeFailure: workers die again and again.
            DistsgdError: what a worker says cannot be mended by another.
        """
        calls = self._running if reference in self._running else self._connecting
        if (worker := calls.pop(reference, None)) is None:
            return  # of a worker that has been sent away in the meantime
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = cause_of(error)
            if isinstance(cause, ChannelClosed):
                self._check_servers()
            elif isinstance(cause, DistsgdError):
                raise cause from error
            self._replace(worker, error, at_work=calls is self._running)
        except DEAD as error:
            self._replace(worker, error, at_work=calls is self._running)
        else:
            if calls is self._connecting:
                self.names[worker], self.hosts[worker], blas = result
                self._compare(worker, blas)
                if self.begun:
                    self._tell_of(worker)
                    self._run(worker)
                else:
                    self._ready[worker] = monotonic()

    def hung(self, worker: int) -> str | None:
        """A worker has not answered for so long that another takes its place.

        Returns:
            what there is to say, unless that has been done already.
        """
        if worker not in self._running.values():
            return None
        self._replace(worker, RuntimeFailure("it does not answer"), at_work=True)
        return f"worker {worker} does not answer; another takes its place"

    def resize(self, workers: int) -> str | None:
        """Add workers, or take some away: those who have not come, else the last ones.

        Returns:
            what there is to say, if anything.
        """
        before = len(self._actors)
        for _ in range(before, workers):
            worker = next(number for number in count() if number not in self._actors)
            self._actors[worker] = self._make(worker)
            self._connect(worker)
        coming = set(self._connecting.values())
        last = sorted(self._actors, key=lambda worker: (worker in coming, worker), reverse=True)
        for worker in last[: max(0, before - workers)]:
            self._end(worker)
            self.names.pop(worker, None)
            self._report_death(worker)
        return None if workers == before else f"{workers} workers from here on"

    def progressed(self) -> None:
        """An update has been applied: whoever fails from now on may be replaced again."""
        self._failures = 0

    def check(self) -> Notice | None:
        """What there is to say of who has come, or when nobody works.

        Raises:
            RuntimeFailure: nobody has for too long.
        """
        if self._to_say:
            return self._to_say.pop(0)
        if self._ready and self._waited() > _SECONDS_UNSAID and not self._said:
            self._said = True
            there = f"{len(self._ready)} of {len(self._actors)} workers are there"
            return Notice(f"{there}; waiting up to {_SECONDS_FOR_ALL:g} s for the others")
        if self._ready:
            self._alone_since = None
            return None
        if self._running or not self._connecting:
            self._alone_since, self._said = None, False
            return None
        self._alone_since = self._alone_since or monotonic()
        alone = monotonic() - self._alone_since
        if alone > self._patience:
            raise RuntimeFailure(f"no worker has come for {self._patience:g} s", HINT)
        if self._said or alone < min(_SECONDS_UNSAID, self._patience / 2):
            return None
        self._said = True
        return Notice(f"no worker is there; waiting up to {self._patience:g} s for one")

    def _tell_of(self, worker: int) -> None:
        """Where one who comes late is, on a cluster."""
        if not (host := self.hosts[worker]).startswith("127."):
            text = f"worker {worker} on {host} by {self.names[worker]}"
            self._to_say.append(Notice(text))

    def _compare(self, worker: int, blas: str) -> None:
        """Each kernel that is not the driver's is told of once."""
        if blas not in self._blas:
            self._blas.add(blas)
            text = (
                f"worker {worker} on {self.hosts[worker]} multiplies by {blas}, this process by "
                f"{blas_kernel()}: the bits depend on who computes what; {SAME_BLAS}"
            )
            self._to_say.append(Notice(text, blas))

    def kill(self) -> None:
        """End every actor."""
        for actor in self._actors.values():
            ray.kill(actor)

    def _connect(self, worker: int) -> None:
        actor = self._actors[worker]
        self._places[worker] = call_in_actor(actor, process_identity)
        incarnation = self._incarnations[worker]
        call = actor.connect.remote(self.contacts, self._channel, incarnation)
        self._connecting[call] = worker

    def _report_death(self, worker: int) -> None:
        """Tell the coordinator; the process that takes the number is another incarnation."""
        self._coordinator.lost.remote(worker, self._incarnations[worker])
        self._incarnations[worker] += 1

    def _run(self, worker: int) -> None:
        self._running[self._actors[worker].run.remote()] = worker

    def _end(self, worker: int) -> None:
        """End a worker, also one that is stopped: its CPU is for another."""
        for calls in (self._connecting, self._running):
            for reference in [call for call, number in calls.items() if number == worker]:
                del calls[reference]
        self._ready.pop(worker, None)
        place = self._places.pop(worker, None)
        if place is not None and ray.wait([place], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):  # it never was anywhere
                end_process(ray.get(place))
        ray.kill(self._actors.pop(worker))

    def _replace(self, worker: int, error: Exception, *, at_work: bool) -> None:
        if self._together and at_work:
            raise WorkerLost(f"worker {worker} is lost: {why_dead(error)}", HINT) from error
        self._report_death(worker)
        self._failures += 1
        if self._failures > _MOST_FAILURES * len(self._actors):
            memory = isinstance(error, ray.exceptions.OutOfMemoryError)
            problem = why_dead(error) if memory else str(error).strip().splitlines()[-1]
            raise RuntimeFailure(f"workers die again and again: {problem}", HINT) from error
        self._end(worker)
        self._actors[worker] = self._make(worker)
        self._connect(worker)

    def _check_servers(self) -> None:
        """Raises `ServerLost` unless all of them answer."""
        answer_of([server.address.remote() for server, *_ in self.contacts])
