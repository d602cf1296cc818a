"""The worker's ends: shared memory within a node, TCP between nodes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.messages import Push
from distsgd.errors import ChannelClosed, RuntimeFailure
from distsgd.transport.base import Work
from distsgd.transport.framing import Shape, receive_work, send_push
from distsgd.transport.handshake import greet_server
from distsgd.transport.log_stream import FOLLOWER, Entry, read_log
from distsgd.transport.port import Address
from distsgd.transport.shared_memory import NoSharedMemory, SharedMemory
from distsgd.transport.socket_options import set_options
from distsgd.transport.tls import secured

__all__ = ["SharedMemoryChannel", "TcpChannel", "connect_within_node", "follow"]


class _Connection:
    """What the two have in common. See `distsgd.transport.base.Channel`."""

    name = ""
    buffer: Floats | None = None
    _shared: Floats | None = None

    def __init__(self, connection: socket.socket, weights: Floats) -> None:
        self._connection, self._weights = connection, weights

    def close(self) -> None:
        """Leave; the server notices."""
        self._connection.close()

    def send(self, push: Push | None) -> None:
        """See `Channel.send`."""
        try:
            send_push(self._connection, push, self._shared)
        except ChannelClosed:
            self.close()
            raise

    def receive(self) -> Work | None:
        """See `Channel.receive`; W is valid until the next call."""
        work = None
        try:
            work = receive_work(self._connection, self._weights, self._shared is not None)
        finally:
            if work is None:
                self.close()
        return work


def follow(address: Address, follower: int, near: bool) -> Iterator[list[Entry]]:
    """What a coordinator decides, for one of its followers.

    Args:
        address: where the coordinator listens.
        follower: number of the follower, from 1.
        near: whether it is on the same node.

    Raises:
        ChannelClosed: nobody listens there, or the coordinator has gone.
    """
    connection = (_connect_near if near else _connect_far)(address, FOLLOWER + follower)
    with connection:
        yield from read_log(connection)


class SharedMemoryChannel(_Connection):
    """To a server of the same node; see `distsgd.transport.shared_memory`.

    Args:
        address: where the server listens.
        worker: number of the worker on this end.
        shape: how large messages are.

    Raises:
        NoSharedMemory: the server cannot share memory.
        ChannelClosed: nobody listens there, or not to us.
    """

    name = "shm"

    def __init__(self, address: Address, worker: int, shape: Shape) -> None:
        connection = _connect_near(address, worker)
        try:
            memory = SharedMemory.take(connection, shape)
        except ChannelClosed:
            connection.close()
            raise
        super().__init__(connection, memory.weights)
        self._shared = self.buffer = memory.sums


class TcpChannel(_Connection):
    """To a server of any node; see `SharedMemoryChannel`."""

    name = "tcp"

    def __init__(self, address: Address, worker: int, shape: Shape) -> None:
        connection = _connect_far(address, worker)
        super().__init__(connection, np.empty(shape.parameters, dtype=shape.dtype))


def connect_within_node(
    address: Address, worker: int, shape: Shape, *, shared: bool = False
) -> SharedMemoryChannel | TcpChannel:
    """To a server of the same node: by shared memory, or by TCP where the system gives none.

    Args:
        address: where the server listens.
        worker: number of the worker on this end.
        shape: how large messages are.
        shared: whether TCP will not do.

    Raises:
        RuntimeFailure: it will not, and memory cannot be shared.
        ChannelClosed: nobody listens there, or not to us.
    """
    try:
        return SharedMemoryChannel(address, worker, shape)
    except NoSharedMemory:
        if shared:
            raise RuntimeFailure(
                "--channel shm: this system gives no memory to share (memfd_create is refused)",
                "Give --channel tcp, or allow that system call",
            ) from None
    return TcpChannel(address, worker, shape)


def _connect_near(address: Address, number: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _connect(connection, f"\0{address.unix}")
        greet_server(connection, address.token, number)
    except ChannelClosed:
        connection.close()
        raise
    return connection


def _connect_far(address: Address, number: int) -> socket.socket:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        set_options(connection)
        connection.settimeout(10)
        _connect(connection, address.tcp)
        connection = secured(connection, server=False)
        greet_server(connection, address.token, number)
    except ChannelClosed:
        connection.close()
        raise
    return connection


def _connect(connection: socket.socket, where: str | tuple[str, int]) -> None:
    try:
        connection.connect(where)
    except OSError as error:
        raise ChannelClosed(f"the parameter server does not listen: {error}") from None
