"""A channel over a Unix socket: for workers on the server's own node.

The socket has an abstract name, so no file is left behind whatever dies. A peer must run as the
same user, which the kernel vouches for, and send a random token; a death closes the socket and is
noticed at once.

A push is a header, the losses of its slots, and the node sums; the answer is a header and W.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from distsgd.channel.base import Decode, ServerPort, Work
from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease, Push
from distsgd.core.slot_gradient import SlotLoss
from distsgd.errors import ChannelClosed

__all__ = ["Shape", "UnixAddress", "UnixSocketChannel", "UnixSocketPort"]

_HELLO = struct.Struct("<32sI")
_PUSH = struct.Struct("<7qIII")
_WORK = struct.Struct("<7q")
_NOTHING = -1
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class UnixAddress:
    """Where a server listens, and what it wants to hear.

    Attributes:
        name: abstract name of the socket.
        token: secret of this training; not shown when printed.
    """

    name: str
    token: bytes = field(repr=False)


@dataclass(frozen=True)
class Shape:
    """How large messages are.

    Attributes:
        parameters: length of flat W.
        dtype: its dtype.
        most_nodes: rows of the largest push.
        most_losses: losses of the largest push.
    """

    parameters: int
    dtype: str
    most_nodes: int
    most_losses: int


def _receive(connection: socket.socket, buffer: memoryview) -> None:
    """Fill the buffer.

    Raises:
        ChannelClosed: the peer has gone.
    """
    while buffer:
        try:
            count = connection.recv_into(buffer)
        except OSError:
            count = 0
        if count == 0:
            raise ChannelClosed("the peer of a channel has gone")
        buffer = buffer[count:]


def _receive_struct(connection: socket.socket, layout: struct.Struct) -> tuple[int, ...]:
    content = bytearray(layout.size)
    _receive(connection, memoryview(content))
    return layout.unpack(content)


def _send(connection: socket.socket, *parts: bytes | memoryview) -> None:
    try:
        for part in parts:
            connection.sendall(part)
    except OSError:
        raise ChannelClosed("the peer of a channel has gone") from None


def _bytes_of(array: Floats) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")


class UnixSocketPort:
    """The server's end: a thread for each worker that connects.

    Args:
        server: where the messages go.
        shape: how large they are.
        lost: told the number of a worker whose socket has closed.
        decode: what encoded gradients are decoded with, into so many rows.
    """

    def __init__(
        self, server: ServerPort, shape: Shape, lost: Callable[[int], None], decode: Decode
    ) -> None:
        self._server, self._shape, self._lost, self._decode = server, shape, lost, decode
        self.address = UnixAddress(f"distsgd-{secrets.token_hex(8)}", secrets.token_bytes(32))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(f"\0{self.address.name}")
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            worker = self._greet(connection)
            if worker is None:
                return
            try:
                self._exchange(connection, worker)
            except ChannelClosed:
                self._lost(worker)

    def _greet(self, connection: socket.socket) -> int | None:
        """The number of a worker that may be here, or None for a stranger."""
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if struct.unpack("iII", peer)[1] != os.getuid():
            return None
        connection.settimeout(10)
        try:
            hello = bytearray(_HELLO.size)
            _receive(connection, memoryview(hello))
        except ChannelClosed:
            return None
        connection.settimeout(None)
        token, worker = _HELLO.unpack(hello)
        return int(worker) if hmac.compare_digest(token, self.address.token) else None

    def _exchange(self, connection: socket.socket, worker: int) -> None:
        shape = self._shape
        losses = np.empty((shape.most_losses, 3), dtype="<f8")
        gradients = np.empty((shape.most_nodes, shape.parameters), dtype=shape.dtype)
        work: Work | None = None
        while True:
            *lease, slots, nodes, size = _receive_struct(connection, _PUSH)
            push = None
            if lease[0] != _NOTHING:
                if slots > len(losses) or nodes > shape.most_nodes or size > gradients.nbytes:
                    raise ChannelClosed("a message larger than any push")
                _receive(connection, _bytes_of(losses[:slots]))
                encoded = bytearray(size) if size else None
                _receive(connection, memoryview(encoded or _bytes_of(gradients[:nodes])))
                found = tuple(SlotLoss(loss, int(hits), int(n)) for loss, hits, n in losses[:slots])
                push = Push(Lease(*lease), found, gradients[:nodes])
                if encoded:
                    whole = bytes(encoded)
                    push = replace(push, gradients=self._decode(whole, nodes), encoded=whole)
            work = self._server.exchange(worker, push)
            if work is None:
                _send(connection, _WORK.pack(_NOTHING, *(0,) * 6))
                return
            _send(connection, _WORK.pack(*work[0].as_tuple()), _bytes_of(work[1]))


class UnixSocketChannel:
    """The worker's end. See `distsgd.channel.base.Channel`.

    Args:
        address: where the server listens.
        worker: number of the worker on this end.
        shape: how large messages are.

    Raises:
        ChannelClosed: nobody listens there.
    """

    name = "unix"

    def __init__(self, address: UnixAddress, worker: int, shape: Shape) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        try:
            self._connection.connect(f"\0{address.name}")
        except OSError as error:
            self._connection.close()
            raise ChannelClosed(f"the parameter server does not listen: {error}") from None
        _send(self._connection, _HELLO.pack(address.token, worker))
        self._weights = np.empty(shape.parameters, dtype=shape.dtype)

    def close(self) -> None:
        """Leave; the server notices."""
        self._connection.close()

    def exchange(self, push: Push | None) -> Work | None:
        """See `Channel.exchange`; W is valid until the next call."""
        try:
            return self._exchange(push)
        except ChannelClosed:
            self.close()
            raise

    def _exchange(self, push: Push | None) -> Work | None:
        if push is None:
            _send(self._connection, _PUSH.pack(_NOTHING, *(0,) * 9))
        else:
            losses = np.array([(one.loss, one.correct, one.examples) for one in push.losses], "<f8")
            sizes = len(push.losses), len(push.gradients), len(push.encoded or b"")
            header = _PUSH.pack(*push.lease.as_tuple(), *sizes)
            gradients = push.encoded or _bytes_of(push.gradients)
            _send(self._connection, header + losses.tobytes(), gradients)
        lease = _receive_struct(self._connection, _WORK)
        if lease[0] == _NOTHING:
            self.close()
            return None
        _receive(self._connection, _bytes_of(self._weights))
        return Lease(*lease), self._weights
