"""The interface of every transport: `Channel` for the worker, `ServerPort` for the server.

`InProcessChannel` is its in-memory implementation: worker and server call each other directly.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease, Message, Push, ResidualRequest
from distsgd.transport.team_memory import TeamMemory

__all__ = [
    "Answer", "Channel", "Decode", "InProcessChannel", "Membership", "Reply", "ServerPort", "Work",
]  # fmt: skip


Work = tuple[Lease, Floats]
"""A lease, and the flat W to compute it at, which the receiver must not write to."""


@dataclass(frozen=True, eq=False)
class Membership:
    """A worker's place in a team, which works in its memory until the team is over.

    Attributes:
        memory: of the team.
        number: of the member, from 0.
    """

    memory: TeamMemory
    number: int


Answer = Work | ResidualRequest
"""What a server sends to any worker; None in its place ends the work."""

Reply = Answer | Membership
"""What it sends to one that shares memory with it."""


Decode = Callable[[bytes, int], Floats]
"""Decodes a gradient into a number of rows; the first holds the whole of it."""


class Channel(Protocol):
    """One worker's connection to one parameter server."""

    name: str
    """What the run's output calls this transport."""

    buffer: Floats | None
    """Where the worker may compute its sums, shape (halves * most_nodes, parameters), to save
    a copy."""

    @property
    def descriptor(self) -> int | None:
        """Descriptor of its connection, if it is one; it can be read when the server has gone."""
        ...

    def send(self, message: Message | None) -> None:
        """Send the answer to what was received last, if anything was, and ask for the next work.

        Raises:
            ChannelClosed: the server has gone.
        """
        ...

    def receive(self) -> Reply | None:
        """Wait for the work that was asked for.

        Returns:
            the work, or a request that comes before it; None when training is over.

        Raises:
            ChannelClosed: the server has gone.
        """
        ...


class ServerPort(Protocol):
    """What a transport needs of the server: the other end of a `Channel`."""

    bell: int | None
    """An eventfd that teams of workers write to; `rung` is to be called then."""

    def rung(self) -> None:
        """The bell has been rung."""
        ...

    def exchange(self, worker: int, message: Message | None, size: int) -> Answer | None:
        """Take what a worker has sent, and wait for its next work.

        Called from one thread per worker.

        Args:
            worker: its number.
            message: see `Channel.send`.
            size: bytes received.

        Returns:
            see `Channel.receive`.
        """
        ...

    def submit(self, worker: int, message: Message | None, size: int) -> None:
        """As `exchange`, for a worker that is `attached`, without waiting."""
        ...

    def attached(
        self, worker: int, give: Callable[[Reply | None], None]
    ) -> AbstractContextManager[None]:
        """While entered, replies to the worker are passed to ``give``."""
        ...

    def arrived(self, worker: int, incarnation: int) -> None:
        """A process that has a worker's number has connected; the one before it is dead."""
        ...

    def lost(self, worker: int, incarnation: int) -> None:
        """The worker's connection has closed: this incarnation of it is dead. Idempotent."""
        ...

    def refused(self, where: str) -> None:
        """A peer at this address does not have the training's token; called once per address."""
        ...


class InProcessChannel:
    """See `distsgd.transport.base.Channel`.

    Args:
        server: the other end.
        worker: number of the worker on this end.
    """

    name = "in-process"
    buffer: Floats | None = None
    descriptor: int | None = None

    def __init__(self, server: ServerPort, worker: int) -> None:
        self._server, self._worker = server, worker
        self._message: Message | None = None

    def send(self, message: Message | None) -> None:
        """See `Channel.send`."""
        self._message = message

    def receive(self) -> Reply | None:
        """See `Channel.receive`."""
        message = self._message
        size = message.size if isinstance(message, Push) else 0
        return self._server.exchange(self._worker, message, size)
