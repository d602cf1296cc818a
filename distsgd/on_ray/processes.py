"""What runs in the processes of a training on Ray: plain classes, made remote in `ray_runtime`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray

from distsgd.core.arrays import Floats
from distsgd.engine.blas import blas_kernel, keep_one_blas_thread
from distsgd.engine.events import Event, Track
from distsgd.engine.follower import FollowerHost
from distsgd.engine.job import Job, Snapshot
from distsgd.engine.server_host import ServerHost
from distsgd.engine.team_turns import join_team
from distsgd.engine.worker import Worker, work
from distsgd.errors import ChannelClosed, DatasetError, StorageError
from distsgd.transport.base import Channel, Membership
from distsgd.transport.connections import ShardedChannel, TcpChannel, connect_within_node, follow
from distsgd.transport.faulty import FaultyChannel, PushFaults, Tally
from distsgd.transport.framing import Entry, Shape
from distsgd.transport.port import Address, Port
from distsgd.transport.ray_calls import RayChannel, RayPort

__all__ = ["Contact", "FollowerProcess", "ServerProcess", "WorkerProcess"]

_POLL_SECONDS = 0.25
_SWITCH_SECONDS = 0.0005

Contact = tuple[Any, str, Address]
"""How a worker reaches a server: its actor, its node, and where it listens there."""


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

        self._calls = RayPort(host, _part_bytes(job, number), decode)
        own = ray.util.get_node_ip_address()
        self._port = Port(host, _shape(job, number), decode, own, log)

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
        self._channel: Channel
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
        self, servers: list[Contact], channel: str, incarnation: int
    ) -> tuple[str, str, str]:
        """Open the data, and connect to the servers by the named channel, or the best there is.

        The data is not opened on creation: errors of calls come through, of creation not.

        Args:
            servers: how to reach them.
            channel: its name.
            incarnation: counts the processes that have had this worker's number, from 1.

        Returns:
            the name of the channel, the address of this node, and its BLAS.
        """
        self.open()
        channels = [
            self._connect(number, contact, channel, incarnation)
            for number, contact in enumerate(servers)
        ]
        ranges = self._job.ranges()
        self._channel = ShardedChannel(channels, ranges, self._job.codec())
        if len(servers) == 1:
            self._channel = channels[0]
        if (chaos := self._job.chaos) is not None:
            tally = Tally(Path(self._job.tally), self._number)
            self._channel = FaultyChannel(self._channel, PushFaults(chaos, self._number, tally))
        return self._channel.name, ray.util.get_node_ip_address(), blas_kernel()

    def _connect(self, number: int, contact: Contact, channel: str, incarnation: int) -> Channel:
        actor, node, address = contact
        here = ray.get_runtime_context().get_node_id()
        shape = _shape(self._job, number)
        if channel in ("shm", "team") or (channel == "auto" and here == node):
            near = connect_within_node(
                address, self._number, shape, incarnation, shared=channel != "auto"
            )
            if near.descriptor is not None and near.name == "shm" and self._job.in_team:
                near.name = "team"
            return near
        if channel in ("tcp", "auto"):
            try:
                return TcpChannel(address, self._number, shape, incarnation)
            except ChannelClosed:
                if channel == "tcp":
                    raise
        return RayChannel(actor, self._number, _part_bytes(self._job, number), incarnation)

    def track(self) -> Track:
        """The timeline of this worker."""
        assert self._worker is not None
        return self._worker.trace.track(f"worker {self._number}")

    def run(self) -> int:
        """Work until the server has no more."""
        assert self._worker is not None
        return work(self._worker, self._channel, self._join)

    def _join(self, place: Membership) -> int:
        """Work in a team; see `work`."""
        assert self._worker is not None and self._channel.descriptor is not None
        return join_team(self._job, self._worker, place, self._channel.descriptor)


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


def _shape(job: Job, server: int) -> Shape:
    slots, part = job.plan.most_slots, job.ranges()[server]
    return Shape(part.stop - part.start, job.dtype, slots, job.most_losses, job.parameters)


def _part_bytes(job: Job, server: int) -> int:
    """Bytes of a server's range of W."""
    part = job.ranges()[server]
    return int(job.vector_bytes // job.parameters * (part.stop - part.start))
