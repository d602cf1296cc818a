"""How a worker reaches the servers, or the worker of its node that leads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from distsgd.engine.blas import blas_kernel
from distsgd.engine.job import Job
from distsgd.engine.node_team import NodeTeam
from distsgd.errors import ChannelClosed
from distsgd.on_ray.node_teams import Connection, may_share_leases
from distsgd.transport.base import Channel
from distsgd.transport.connections import (
    ShardedChannel,
    SharedMemoryChannel,
    TcpChannel,
    connect_within_node,
)
from distsgd.transport.faulty import FaultyChannel, PushFaults, Tally
from distsgd.transport.framing import Shape
from distsgd.transport.port import Address, Port
from distsgd.transport.ray_calls import RayChannel

__all__ = ["Connector", "Contact", "part_bytes", "shape_of"]

Contact = tuple[Any, str, Address]
"""How a worker reaches a server: its actor, its node, and where it listens there."""


class Connector:
    """Connects a worker, once or again.

    Args:
        job: what is trained.
        number: of the worker.

    Attributes:
        channel: to all servers, or to the leader of its node.
    """

    channel: Channel

    def __init__(self, job: Job, number: int) -> None:
        self._job, self._number = job, number
        self._channels: list[Channel] = []  # to each server
        self._port: Port | None = None  # for other workers of this node

    def connect(
        self, servers: list[Contact], channel: str, incarnation: int, leader: Address | None
    ) -> Connection:
        """Connect to the servers by the named channel, or the best there is.

        On a node without a server others may come to share the leases of this worker: it listens
        for them. Or it is one of those others.

        Args:
            servers: how to reach them.
            channel: its name.
            incarnation: counts the connections that have had this worker's number, from 1.
            leader: where the worker listens to connect to instead, see `NodeTeam`.
        """
        self._disconnect()
        here = ray.get_runtime_context().get_node_id()
        near = here in [node for _, node, _ in servers]
        if leader is not None:
            shape = _whole_shape(self._job)
            self._channels = [connect_within_node(leader, self._number, shape, incarnation)]
        else:
            self._channels = [
                self._reach(number, contact, channel, incarnation)
                for number, contact in enumerate(servers)
            ]
        self.channel = self._channels[0]
        if len(self._channels) > 1:
            self.channel = ShardedChannel(self._channels, self._job.ranges(), self._job.codec())
        if channel == "auto" and leader is None and not near and may_share_leases(self._job):
            self._lead(servers[0][0])
        if (chaos := self._job.chaos) is not None:
            tally = Tally(Path(self._job.tally), self._number)
            self.channel = FaultyChannel(self.channel, PushFaults(chaos, self._number, tally))
        door = None if self._port is None else self._port.address
        return Connection(
            self.channel.name, ray.util.get_node_ip_address(), blas_kernel(), here, door
        )

    def _lead(self, coordinator: Any) -> None:
        """Let other workers of this node share the leases of this one."""
        job = self._job

        def hung(worker: int) -> None:
            coordinator.hangs.remote(worker)

        team = NodeTeam(
            self.channel, self._number, job.plan, job.parameters, job.dtype, job.hang_seconds, hung
        )
        whole = slice(0, job.parameters)
        self._port = Port(team, _whole_shape(job), lambda got, rows: job.decode(got, rows, whole))
        self.channel = team

    def _disconnect(self) -> None:
        """End the connections there are, before others are made."""
        if self._port is not None:
            self._port.close()
            self._port = None
        for channel in self._channels:
            if isinstance(channel, SharedMemoryChannel | TcpChannel):
                channel.close()
        self._channels = []

    def _reach(self, number: int, contact: Contact, channel: str, incarnation: int) -> Channel:
        """A channel to one server."""
        actor, node, address = contact
        here = ray.get_runtime_context().get_node_id()
        shape = shape_of(self._job, number)
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
        return RayChannel(actor, self._number, part_bytes(self._job, number), incarnation)


def shape_of(job: Job, server: int) -> Shape:
    """That of the messages between a worker and a server."""
    slots, part = job.plan.most_slots, job.ranges()[server]
    rows = part.stop - part.start
    return Shape(rows, job.dtype, slots, job.most_losses, job.parameters, job.policy.halves)


def _whole_shape(job: Job) -> Shape:
    """That of the messages between the workers of a node."""
    slots = job.plan.most_slots
    return Shape(job.parameters, job.dtype, slots, slots, job.parameters)


def part_bytes(job: Job, server: int) -> int:
    """Bytes of a server's range of W."""
    part = job.ranges()[server]
    return int(job.vector_bytes // job.parameters * (part.stop - part.start))
