"""The worker actors of one training: connected, started, and replaced when they die.

A worker that hangs is killed by its `ProcessIdentity`, at once: Ray would ask it to end, and use
force only after 5 s, during which a stopped process holds its CPU.
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
from distsgd.engine.events import Happened, Notice
from distsgd.errors import ChannelClosed, DistsgdError, RuntimeFailure, WorkerLost
from distsgd.on_ray.health import DEAD, HINT, answer_of, cause_of, why_dead
from distsgd.on_ray.node_teams import Connection, NodeTeams
from distsgd.on_ray.private import call_in_actor
from distsgd.transport.port import Address

__all__ = ["WAIT_SECONDS", "Fleet", "ProcessIdentity", "end_process", "process_identity"]


@dataclass(frozen=True)
class ProcessIdentity:
    """What identifies a process, even if its id is used again.

    Attributes:
        machine: boot id and pid namespace of its machine.
        pid: its process id.
        started: its start time, in ticks since the boot.
    """

    machine: str
    pid: int
    started: str


def process_identity(_: object = None) -> ProcessIdentity:
    """The identity of this process."""
    return ProcessIdentity(_machine(), os.getpid(), _started(os.getpid()))


def end_process(place: ProcessIdentity) -> bool:
    """SIGKILL a process, if it is on this machine and still the same; returns whether it was."""
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
_QUIET_SECONDS = 5.0
_ORPHAN_SECONDS = 5.0
_SECONDS_FOR_ALL = 10.0
WAIT_SECONDS = 120.0
"""Seconds to wait for a worker when none is connected."""


class Fleet:
    """The workers of a training, by number.

    Args:
        make: starts the actor of a worker; called again for a replacement.
        channel: name of the channel to the servers, or "auto".
        coordinator: the actor of the first server, to which deaths are reported.
        workers: number of workers.
        patience: seconds to wait without a single worker.
        capacity: number of workers for which there are CPUs; None if unknown.
        together: whether a worker that has worked cannot be replaced alone, because its residual is
            lost with it.
        slack: extra seconds before late workers are reported, or left behind.
        exact: whether the bits are the same by every BLAS kernel.

    Attributes:
        hosts: worker -> address of its node, likewise.
        contacts: how workers reach the servers.
        started: whether the workers have started.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        channel: str,
        coordinator: Any,
        workers: int,
        patience: float,
        capacity: int | None = None,
        together: bool = False,
        slack: float = 0.0,
        exact: bool = False,
    ) -> None:
        self._quiet, self._for_all = _QUIET_SECONDS + slack, _SECONDS_FOR_ALL + slack
        self._make, self._coordinator = make, coordinator
        self._patience, self._capacity = patience, capacity
        self._channel, self.contacts, self._together = channel, list[Any](), together
        self._exact = exact
        self._names: dict[int, str] = {}  # worker -> name of its channel, once it is connected
        self._teams = NodeTeams()
        self._orphaned: dict[int, float] = {}  # member whose leader has gone -> since when
        self._told: dict[int, int] = {}  # what the coordinator knows of their sizes
        self.hosts: dict[int, str] = {}
        self.started = False
        self._actors: dict[int, Any] = {}
        self._places: dict[int, Any] = {}
        self._connecting: dict[Any, int] = {}
        self._ready: dict[int, float] = {}  # connected, not yet started -> since when
        self._running: dict[Any, int] = {}
        self._incarnations = defaultdict[int, int](lambda: 1)
        self._failures = 0
        self._alone_since: float | None = None
        self._warned = False
        self._blas = {blas_kernel()}
        self._notices: list[Notice] = []
        self._happened: list[Happened] = []
        self._lost: set[int] = set()  # workers whose replacements have not come yet
        for worker in range(workers):
            self._actors[worker] = make(worker)

    @property
    def actors(self) -> list[Any]:
        """All actors, including dead ones that are not replaced yet."""
        return list(self._actors.values())

    @property
    def names(self) -> dict[int, str]:
        """Worker -> name of its channel, once it is connected."""
        return self._teams.named(self._names)

    @property
    def pending(self) -> list[Any]:
        """The calls that `ended` is to be called for."""
        return [*self._connecting, *self._running]

    def connect_all(self, contacts: list[Any]) -> None:
        """Make every worker connect; `ended` follows for each.

        Args:
            contacts: how a worker reaches the servers.
        """
        self.contacts = contacts
        for worker in self._actors:
            self._connect(worker)

    def enough(self) -> bool:
        """Whether to start: with all workers, so that none starts long before the others.

        Or with the connected ones, if there are no CPUs for the others, or they have not connected
        for some time.
        """
        full = self._capacity is not None and len(self._ready) >= self._capacity
        late = self._waited() > self._for_all
        return bool(self._ready) and (not self._connecting or full or late)

    def _waited(self) -> float:
        """Seconds since the first worker was ready."""
        first = min(self._ready.values(), default=None)
        return 0.0 if first is None else monotonic() - first

    def start_work(self) -> str | None:
        """Start the connected workers; returns a message about the others, if there are any."""
        self.started = True
        there, every = len(self._ready), len(self._actors)
        if self._together and there < every:  # else the server waits for their pieces
            missing = self._actors.keys() - self._ready.keys()
            answer_of([self._coordinator.give_up.remote(worker) for worker in missing])
        for worker in self._ready:
            self._run(worker)
        self._ready.clear()
        if there == every:
            return None
        return f"{there} of {every} workers are connected; the others join as soon as CPUs are free"

    def ended(self, reference: Any) -> None:
        """A call has ended: a worker has connected, finished or died.

        Raises:
            ServerLost: a worker has lost its server, which is dead.
            WorkerLost: a worker has died that cannot be replaced alone.
            RuntimeFailure: workers die repeatedly.
            DistsgdError: an error that a replacement would raise again.
        """
        calls = self._running if reference in self._running else self._connecting
        if (worker := calls.pop(reference, None)) is None:
            return  # of a worker that was removed meanwhile
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = cause_of(error)
            if isinstance(cause, ChannelClosed):
                if self._teams.lost_leader(worker):
                    self._reconnect(worker)
                    return
                self._check_servers()
            elif isinstance(cause, DistsgdError):
                raise cause from error
            self._replace(worker, error, at_work=calls is self._running)
        except DEAD as error:
            self._replace(worker, error, at_work=calls is self._running)
        else:
            if calls is self._connecting:
                self._connected(worker, result)

    def _connected(self, worker: int, found: Connection) -> None:
        if (door := self._teams.connected(worker, found)) is not None:
            self._reconnect(worker, door)
            return
        self._names[worker], self.hosts[worker] = found.channel, found.host
        self._tell_sizes()
        self._compare(worker, found.blas)
        if self.started:
            if worker in self._lost:
                self._lost.remove(worker)
                text = f"worker {worker} works again, in another process"
                self._happened.append(Happened("replaced", text))
            self._announce(worker)
            self._run(worker)
        else:
            self._ready[worker] = monotonic()

    def hung(self, worker: int) -> str | None:
        """Replace a worker that has not answered for long.

        Returns:
            a message, or None if it has been replaced already.
        """
        if worker not in self._running.values():
            return None
        self._replace(worker, RuntimeFailure("it does not answer"), at_work=True)
        return f"worker {worker} does not answer; it is replaced"

    def resize(self, workers: int) -> str | None:
        """Add workers, or remove some: those that are not connected first, then the last ones.

        Returns:
            a message, or None if nothing changes.
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
            self._names.pop(worker, None)
            self._report_death(worker)
            self._tell_sizes()
        return None if workers == before else f"{workers} workers from here on"

    def progressed(self) -> None:
        """An update has been applied: failures are counted from 0 again."""
        self._failures = 0

    def check(self) -> Notice | None:
        """The next notice about workers that are missing or came late, if any.

        Raises:
            RuntimeFailure: no worker has been connected for too long.
        """
        self._check_orphans()
        if self._notices:
            return self._notices.pop(0)
        if self._ready and self._waited() > self._quiet and not self._warned:
            self._warned = True
            there = f"{len(self._ready)} of {len(self._actors)} workers are connected"
            return Notice(f"{there}; waiting up to {self._for_all:g} s for the others")
        if self._ready:
            self._alone_since = None
            return None
        if self._running or not self._connecting:
            self._alone_since, self._warned = None, False
            return None
        self._alone_since = self._alone_since or monotonic()
        alone = monotonic() - self._alone_since
        if alone > self._patience:
            raise RuntimeFailure(f"no worker has connected for {self._patience:g} s", HINT)
        if self._warned or alone < min(self._quiet, self._patience / 2):
            return None
        self._warned = True
        return Notice(f"no worker is connected; waiting up to {self._patience:g} s for one")

    def take_happened(self) -> list[Happened]:
        """What has happened to workers since the last call."""
        found, self._happened = self._happened, []
        return found

    def _check_orphans(self) -> None:
        """Replace members of a leader that has gone, if they are as silent as it was."""
        since = {
            worker: self._orphaned.get(worker, monotonic()) for worker in self._teams.orphans()
        }
        self._orphaned = since
        for worker, began in since.items():
            if monotonic() - began > _ORPHAN_SECONDS and (said := self.hung(worker)):
                self._notices.append(Notice(said, kind="replaced"))

    def _announce(self, worker: int) -> None:
        """Tell on which node of a cluster a late worker is."""
        if not (host := self.hosts[worker]).startswith("127."):
            text = f"worker {worker} on {host} by {self.names[worker]}"
            self._notices.append(Notice(text))

    def _compare(self, worker: int, blas: str) -> None:
        """Warn once of each BLAS kernel that is not the driver's, if that may change bits."""
        if not self._exact and blas not in self._blas:
            self._blas.add(blas)
            text = (
                f"worker {worker} on {self.hosts[worker]} multiplies by {blas}, this process by "
                f"{blas_kernel()}: the bits depend on who computes what; {SAME_BLAS}"
            )
            self._notices.append(Notice(text, blas))

    def kill(self) -> None:
        """End every actor."""
        for actor in self._actors.values():
            ray.kill(actor)

    def _connect(self, worker: int, door: Address | None = None) -> None:
        """Have a worker connect, to the servers or to the leader of its node."""
        actor = self._actors[worker]
        self._places[worker] = call_in_actor(actor, process_identity)
        incarnation = self._incarnations[worker]
        call = actor.connect.remote(self.contacts, self._channel, incarnation, door)
        self._connecting[call] = worker

    def _reconnect(self, worker: int, door: Address | None = None) -> None:
        """Have a living worker connect to another; the server does not wait for it meanwhile."""
        self._report_death(worker)
        self._connect(worker, door)

    def _tell_sizes(self) -> None:
        """Tell the coordinator of the teams, if it does not know of them."""
        if (sizes := self._teams.sizes()) != self._told:
            self._told = sizes
            self._coordinator.node_teams.remote(sizes)

    def _report_death(self, worker: int) -> None:
        """Tell the coordinator; the process that takes the number is another incarnation."""
        self._coordinator.lost.remote(worker, self._incarnations[worker])
        self._incarnations[worker] += 1

    def _run(self, worker: int) -> None:
        self._running[self._actors[worker].run.remote()] = worker

    def _end(self, worker: int) -> None:
        """Kill a worker, even a stopped one, so that its CPU is free."""
        for calls in (self._connecting, self._running):
            for reference in [call for call, number in calls.items() if number == worker]:
                del calls[reference]
        self._ready.pop(worker, None)
        place = self._places.pop(worker, None)
        if place is not None and ray.wait([place], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):  # it died before it could tell
                end_process(ray.get(place))
        ray.kill(self._actors.pop(worker))
        self._teams.gone(worker)

    def _replace(self, worker: int, error: Exception, *, at_work: bool) -> None:
        if self._together and at_work:
            raise WorkerLost(f"worker {worker} is lost: {why_dead(error)}", HINT) from error
        self._report_death(worker)
        self._lost.add(worker)
        text = f"worker {worker} is lost: {why_dead(error)}"
        self._happened.append(Happened("death", text[:500]))
        self._failures += 1
        if self._failures > _MOST_FAILURES * len(self._actors):
            memory = isinstance(error, ray.exceptions.OutOfMemoryError)
            problem = why_dead(error) if memory else str(error).strip().splitlines()[-1]
            raise RuntimeFailure(f"workers die repeatedly: {problem}", HINT) from error
        self._end(worker)
        self._tell_sizes()
        self._actors[worker] = self._make(worker)
        self._connect(worker)

    def _check_servers(self) -> None:
        """Raise `ServerLost` unless all servers answer."""
        answer_of([server.address.remote() for server, *_ in self.contacts])
