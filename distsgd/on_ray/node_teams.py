"""Which workers share a node without a server, and which of them leads: see `NodeTeam`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from distsgd.core.chaos import PUSH_FAULTS
from distsgd.engine.job import Job
from distsgd.transport.port import Address

__all__ = ["Connection", "NodeTeams", "may_share_leases"]


_NOBODY = -1
"""Leads those whose leader has gone, until they notice."""


class Connection(NamedTuple):
    """How a worker is connected.

    Attributes:
        channel: name of its channel.
        host: address of its node.
        blas: the BLAS of its process, see `blas_kernel`.
        node: its node, as Ray calls it.
        door: where it listens for other workers of its node; None if it cannot lead them.
    """

    channel: str
    host: str
    blas: str
    node: str = ""
    door: Address | None = None


def may_share_leases(job: Job) -> bool:
    """Whether the workers of a node may share a lease, rather than have one each.

    They may where pieces are what the number of workers makes of a minibatch. Not with compression,
    as encoded gradients do not add up; nor with faults of pushes, which befall single workers.
    """
    faults = job.chaos.faults if job.chaos is not None else ()
    of_pushes = any(fault.name in PUSH_FAULTS for fault in faults)
    return job.policy.divides and job.compress == "none" and not of_pushes


class NodeTeams:
    """The leader of each node, and its members.

    Every worker connects to the servers first. The first of a node stays so, and leads; those that
    come later are told to connect to it instead. When a leader has gone, the next that connects
    takes its place.
    """

    def __init__(self) -> None:
        self._leaders: dict[str, int] = {}  # node -> its leader
        self._doors: dict[int, Address] = {}  # leader -> where it listens
        self._members: dict[int, int] = {}  # member -> its leader

    def connected(self, worker: int, found: Connection) -> Address | None:
        """Where a worker that has connected is to connect to instead; None if it stays."""
        if worker in self._members or found.door is None:
            return None
        leader = self._leaders.setdefault(found.node, worker)
        if leader == worker:
            self._doors[worker] = found.door
            return None
        self._members[worker] = leader
        return self._doors[leader]

    def gone(self, worker: int) -> None:
        """A worker is dead, or about to be; the members of a leader notice by themselves."""
        self._members.pop(worker, None)
        if self._doors.pop(worker, None) is not None:
            self._leaders = {node: one for node, one in self._leaders.items() if one != worker}
            for member in [one for one, leader in self._members.items() if leader == worker]:
                self._members[member] = _NOBODY

    def lost_leader(self, worker: int) -> bool:
        """Whether a worker whose channel has closed was a member, which can reconnect.

        Its leader leads no more, whether it is dead or not: nobody is sent to it again.
        """
        leader = self._members.pop(worker, None)
        if leader is not None:
            self.gone(leader)
        return leader is not None

    def orphans(self) -> list[int]:
        """Members whose leader has gone, and that have not noticed yet."""
        return [member for member, leader in self._members.items() if leader == _NOBODY]

    def sizes(self) -> dict[int, int]:
        """How many workers compute the pieces of each leader that has members."""
        members = Counter(self._members.values())
        return {leader: 1 + members[leader] for leader in self._doors if members[leader]}

    def named(self, channels: Mapping[int, str]) -> dict[int, str]:
        """Worker -> what the run's output calls its channel, or that of its team to the servers.

        Workers that share memory with a server make updates among themselves only if all do.
        """
        if set(channels.values()) != {"team"}:
            channels = {w: "shm" if name == "team" else name for w, name in channels.items()}
        teams = self.sizes()
        leaders = {worker: self._members.get(worker, worker) for worker in channels}
        return {
            worker: f"team+{channels[leader]}" if leader in teams else channels[worker]
            for worker, leader in leaders.items()
        }
