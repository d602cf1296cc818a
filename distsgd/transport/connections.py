"""The worker's channels: shared memory within a node, TCP between nodes, and several servers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease, Message, Push, ResidualReport, ResidualRequest
from distsgd.core.optim import Codec
from distsgd.errors import ChannelClosed, RuntimeFailure
from distsgd.transport.base import Channel, Membership, Reply
from distsgd.transport.framing import (
    FOLLOWER,
    Entry,
    Shape,
    read_log,
    receive_reply,
    send_message,
    set_options,
)
from distsgd.transport.handshake import greet_server, secured
from distsgd.transport.port import Address
from distsgd.transport.shared_memory import NoSharedMemory, SharedMemory

__all__ = ["ShardedChannel", "SharedMemoryChannel", "TcpChannel", "connect_within_node", "follow"]


class _Connection:
    """A channel over a socket. See `distsgd.transport.base.Channel`."""

    name = ""
    buffer: Floats | None = None
    _shared: Callable[[int], Floats] | None = None

    def __init__(self, connection: socket.socket, weights: Floats) -> None:
        self._connection, self._weights = connection, weights

    @property
    def descriptor(self) -> int | None:
        """See `Channel.descriptor`."""
        return self._connection.fileno()

    def close(self) -> None:
        """Close the connection; the server notices."""
        self._connection.close()

    def send(self, message: Message | None) -> None:
        """See `Channel.send`."""
        try:
            send_message(self._connection, message, self._shared)
        except ChannelClosed:
            self.close()
            raise

    def receive(self) -> Reply | None:
        """See `Channel.receive`; W is valid until the next call."""
        reply = None
        try:
            reply = receive_reply(self._connection, self._weights, self._shared is not None)
        finally:
            if reply is None:
                self.close()
        return reply


def follow(address: Address, follower: int, near: bool) -> Iterator[list[Entry]]:
    """The decisions of a coordinator, for one of its followers.

    Args:
        address: where the coordinator listens.
        follower: number of the follower, from 1.
        near: whether it is on the same node.

    Raises:
        ChannelClosed: nothing listens there, or the coordinator has gone.
    """
    connection = (_connect_near if near else _connect_far)(address, FOLLOWER + follower, 0)
    with connection:
        yield from read_log(connection)


class SharedMemoryChannel(_Connection):
    """To a server of the same node; see `distsgd.transport.shared_memory`.

    Args:
        address: where the server listens.
        worker: number of the worker on this end.
        shape: how large messages are.
        incarnation: counts the processes that have had this number, from 1.

    Raises:
        NoSharedMemory: the server cannot share memory.
        ChannelClosed: nothing listens there, or it refuses us.
    """

    name = "shm"

    def __init__(self, address: Address, worker: int, shape: Shape, incarnation: int = 1) -> None:
        connection = _connect_near(address, worker, incarnation)
        try:
            memory = SharedMemory.take(connection, shape)
        except ChannelClosed:
            connection.close()
            raise
        super().__init__(connection, memory.weights)
        self.buffer = memory.sums
        self._shared = partial(shape.half, memory.sums)


class TcpChannel(_Connection):
    """To a server of any node; see `SharedMemoryChannel`."""

    name = "tcp"

    def __init__(self, address: Address, worker: int, shape: Shape, incarnation: int = 1) -> None:
        connection = _connect_far(address, worker, incarnation)
        super().__init__(connection, np.empty(shape.parameters, dtype=shape.dtype))


def connect_within_node(
    address: Address, worker: int, shape: Shape, incarnation: int = 1, *, shared: bool = False
) -> SharedMemoryChannel | TcpChannel:
    """To a server of the same node: by shared memory, or by TCP where the system gives none.

    Args:
        address: where the server listens.
        worker: number of the worker on this end.
        shape: how large messages are.
        incarnation: counts the processes that have had this number, from 1.
        shared: whether to insist on shared memory.

    Raises:
        RuntimeFailure: shared memory is required, and the system refuses it.
        ChannelClosed: nothing listens there, or it refuses us.
    """
    try:
        return SharedMemoryChannel(address, worker, shape, incarnation)
    except NoSharedMemory:
        if shared:
            raise RuntimeFailure(
                "channel shm: this system does not share memory (memfd_create is refused)",
                "Use channel tcp, or allow that system call",
            ) from None
    return TcpChannel(address, worker, shape, incarnation)


def _connect_near(address: Address, number: int, incarnation: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _connect(connection, f"\0{address.unix}")
        greet_server(connection, address.token, number, incarnation)
    except ChannelClosed:
        connection.close()
        raise
    return connection


def _connect_far(address: Address, number: int, incarnation: int) -> socket.socket:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        set_options(connection)
        connection.settimeout(10)
        _connect(connection, address.tcp)
        connection = secured(connection, server=False)
        greet_server(connection, address.token, number, incarnation)
    except ChannelClosed:
        connection.close()
        raise
    return connection


def _connect(connection: socket.socket, where: str | tuple[str, int]) -> None:
    try:
        connection.connect(where)
    except OSError as error:
        raise ChannelClosed(f"the parameter server does not listen: {error}") from None


class ShardedChannel:
    """See `distsgd.transport.base.Channel`.

    Followers are sent their parts first, so that they have them when the coordinator decides.

    Args:
        channels: to the coordinator, and to the other servers in the order of their ranges.
        ranges: the ranges of flat W.
        codec: what gradients are encoded with, if they are.
    """

    buffer: Floats | None = None
    descriptor: int | None = None

    def __init__(
        self, channels: Sequence[Channel], ranges: Sequence[slice], codec: Codec | None
    ) -> None:
        self.name = channels[0].name
        self._channels, self._ranges, self._codec = channels, ranges, codec

    def send(self, message: Message | None) -> None:
        """See `Channel.send`."""
        coordinator, *followers = self._channels
        if isinstance(message, ResidualReport):  # the coordinator alone asks for it
            coordinator.send(message)
            return
        own, *others = self._ranges
        for channel, part in zip(followers, others, strict=True):
            channel.send(None if message is None else self._cut(message, part))
        coordinator.send(None if message is None else self._cut(message, own))

    def _cut(self, push: Push, part: slice) -> Push:
        """One server's range of a push."""
        gradients = np.ascontiguousarray(push.gradients[:, part])
        encoded = push.encoded
        if encoded is not None and self._codec is not None:
            encoded = self._codec.cut(encoded, part)
        return push._replace(gradients=gradients, encoded=encoded)

    def receive(self) -> Reply | None:
        """See `Channel.receive`."""
        coordinator, *followers = self._channels
        reply = coordinator.receive()
        if isinstance(reply, ResidualRequest):
            return reply
        if reply is None:
            for channel in followers:
                channel.receive()
            return None
        assert not isinstance(reply, Membership)  # a team has one server
        lease, weights = reply
        rest = [self._part(channel, lease) for channel in followers]
        return lease, np.concatenate([weights, *rest])

    def _part(self, channel: Channel, lease: Lease) -> Floats:
        """A follower's range of W, as of a lease.

        The first reply may be for the lease of the worker's previous incarnation.
        """
        while (reply := channel.receive()) is not None:
            if isinstance(reply, tuple) and reply[0] == lease:
                return reply[1]
            channel.send(None)
        raise ChannelClosed("the parameter servers disagree on whether there is work left")
