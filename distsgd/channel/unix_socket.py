"""A channel over a Unix socket: for workers on the server's own node.

The socket has an abstract name, so no file is left behind whatever dies. A peer must run as the
same user, which the kernel vouches for, and send a random token; a death closes the socket and is
noticed at once.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from distsgd.channel.base import Decode, ServerPort, Work
from distsgd.channel.framing import (
    PushReader,
    Shape,
    receive,
    receive_work,
    send,
    send_push,
    send_work,
)
from distsgd.core.messages import Push
from distsgd.errors import ChannelClosed

__all__ = ["UnixAddress", "UnixSocketChannel", "UnixSocketPort"]

_HELLO = struct.Struct("<32sI")
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
            receive(connection, memoryview(hello))
        except ChannelClosed:
            return None
        connection.settimeout(None)
        token, worker = _HELLO.unpack(hello)
        return int(worker) if hmac.compare_digest(token, self.address.token) else None

    def _exchange(self, connection: socket.socket, worker: int) -> None:
        reader, work = PushReader(self._shape, self._decode), None
        while True:
            push, size = reader.read(connection)
            work = self._server.exchange(worker, push, size)
            send_work(connection, work)
            if work is None:
                return


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
        send(self._connection, _HELLO.pack(address.token, worker))
        self._weights = np.empty(shape.parameters, dtype=shape.dtype)

    def close(self) -> None:
        """Leave; the server notices."""
        self._connection.close()

    def send(self, push: Push | None) -> None:
        """See `Channel.send`."""
        try:
            send_push(self._connection, push)
        except ChannelClosed:
            self.close()
            raise

    def receive(self) -> Work | None:
        """See `Channel.receive`; W is valid until the next call."""
        work = None
        try:
            work = receive_work(self._connection, self._weights)
        finally:
            if work is None:
                self.close()
        return work
