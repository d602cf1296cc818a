"""What runs in the processes of a training on Ray: plain classes, made remote in `driver`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import ray

from distsgd.core.arrays import Floats
from distsgd.engine.blas import keep_one_blas_thread
from distsgd.engine.events import Event, Track
from distsgd.engine.follower import FollowerHost
from distsgd.engine.job import Job, Snapshot
from distsgd.engine.server_host import ServerHost
from distsgd.engine.team_turns import join_team
from distsgd.engine.worker import Worker, work
from distsgd.errors import DatasetError, StorageError
from distsgd.on_ray.connecting import Connector, Contact, part_bytes, shape_of
from distsgd.on_ray.node_teams import Connection
from distsgd.transport.base import Membership
from distsgd.transport.connections import follow
from distsgd.transport.framing import Entry
from distsgd.transport.port import Address, Port
from distsgd.transport.ray_calls import RayPort

__all__ = ["FollowerProcess", "ServerProcess", "WorkerProcess"]

_POLL_SECONDS = 0.25
_SWITCH_SECONDS = 0.0005


class _Listening:
    """A server's ports: actor calls, and a socket for workers on its node."""

    def __init__(
        self,
        host: ServerHost | FollowerHost,
        job: Job,
        number: int,
        log: Callable[[int], list[Entry]] | None = None,
    ) -> None:
        _settle_down()
        part = job.ranges()[number]
        self._trace, self._name = host.trace, f"server {number}"

        def decode(payload: bytes, rows: int) -> Floats:
            return job.decode(payload, rows, part)

        self._calls = RayPort(host, part_bytes(job, number), decode)
        own = ray.util.get_node_ip_address()
        self._port = Port(host, shape_of(job, number), decode, own, log)

    def process(self) -> tuple[str, int]:
        """See `_process`."""
        return _process()

    def track(self) -> Track:
        """The timeline of this server."""
        return self._trace.track(self._name)

    def address(self) -> tuple[str, Address]:
        """The node this server is on, and where it listens there."""
        return ray.get_runtime_context().get_node_id(), self._port.address

    def exchange(self, worker: int, incarnation: int, meta: Any, *chunks: Any) -> Any:
        """See `RayPort.exchange`. A call has a fixed number of results, which the caller sets."""
        return self._calls.exchange(worker, incarnation, meta, *chunks)


class ServerProcess(_Listening):
    """The server, or the coordinator of several."""

    def __init__(self, job: Job, start: Snapshot, workers: int) -> None:
        keep_one_blas_thread()
        self._host = ServerHost(job, start, workers)
        super().__init__(self._host, job, 0, self.log)

    def log(self, follower: int) -> list[Entry]:
        """See `ServerHost.log`."""
        return self._host.log(follower, _POLL_SECONDS)

    def events(self, timeout: float) -> list[Event]:
        """See `ServerHost.events`."""
        return self._host.events(timeout)

    def lost(self, worker: int, incarnation: int) -> None:
        """See `ServerHost.lost`."""
        self._host.lost(worker, incarnation)

    def node_teams(self, sizes: dict[int, int]) -> None:
        """See `ServerHost.node_teams`."""
        self._host.node_teams(sizes)

    def hangs(self, worker: int) -> None:
        """See `ServerHost.hangs`."""
        self._host.hangs(worker)

    def give_up(self, worker: int) -> None:
        """See `ServerHost.give_up`."""
        self._host.give_up(worker)

    def stop(self) -> None:
        """See `ServerHost.stop`."""
        self._host.stop()


class FollowerProcess(_Listening):
    """The server of another range."""

    def __init__(self, job: Job, start: Snapshot, number: int) -> None:
        keep_one_blas_thread()
        self._number = number
        self._host = FollowerHost(job, start, number)
        super().__init__(self._host, job, number)

    def follow(self, coordinator: Contact, channel: str) -> None:
        """Do as the coordinator decides, until one of the two is ended."""
        for entries in self._log(coordinator, channel):
            self._host.follow(entries)

    def _log(self, coordinator: Contact, channel: str) -> Iterator[list[Entry]]:
        actor, node, address = coordinator
        if channel != "ray":
            near = channel != "tcp" and ray.get_runtime_context().get_node_id() == node
            yield from follow(address, self._number, near)
        while True:
            yield ray.get(actor.log.remote(self._number))

    def snapshot(self, version: int, floor: int) -> tuple[Floats, dict[str, Floats], int]:
        """See `FollowerHost.snapshot`."""
        return self._host.snapshot(version, floor)


class WorkerProcess:
    """A worker."""

    def __init__(self, job: Job, start: Snapshot, number: int, workers: int) -> None:
        keep_one_blas_thread()
        self._job, self._number = job, number
        self._connector = Connector(job, number)
        self._worker: Worker | None = None
        self._feedback = job.feedback(start, number, workers)

    def process(self) -> tuple[str, int]:
        """See `_process`."""
        return _process()

    def open(self) -> None:
        """Open the data, once; called ahead, while the servers are being started."""
        if self._worker is None:
            try:
                self._worker = Worker(self._job, self._feedback)
            except (DatasetError, StorageError) as error:
                if (here := ray.util.get_node_ip_address()).startswith("127."):
                    raise
                raise type(error)(f"on node {here}: {error.problem}", error.hint) from None
            _settle_down()

    def connect(
        self, servers: list[Contact], channel: str, incarnation: int, leader: Address | None = None
    ) -> Connection:
        """Open the data, and connect; see `Connector.connect`.

        The data is not opened on creation: errors of calls come through, of creation not.
        """
        self.open()
        return self._connector.connect(servers, channel, incarnation, leader)

    def track(self) -> Track:
        """The timeline of this worker."""
        assert self._worker is not None
        return self._worker.trace.track(f"worker {self._number}")

    def run(self) -> int:
        """Work until the server has no more."""
        assert self._worker is not None
        return work(self._worker, self._connector.channel, self._join)

    def _join(self, place: Membership) -> int:
        """Work in a team; see `work`."""
        descriptor = self._connector.channel.descriptor
        assert self._worker is not None and descriptor is not None
        return join_team(self._job, self._worker, place, descriptor)


def _process() -> tuple[str, int]:
    """The node that this process is on, and its number there."""
    return ray.get_runtime_context().get_node_id(), os.getpid()


def _settle_down() -> None:
    """What is there now stays: the garbage collector need not look through it again and again.

    And no thread keeps the interpreter for long, as workers wait for one that packs events.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_SECONDS)
