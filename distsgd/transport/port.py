"""Where a server listens: a Unix socket for workers of its node, and TCP for all others.

The Unix socket has an abstract name, so no file is left behind. A worker of the same node shares
memory with the server, and its socket carries only headers; from another node, gradients and W go
over the connection. A death closes the connection and is noticed at once.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from distsgd.errors import ChannelClosed, UsageError
from distsgd.transport.base import Decode, ServerPort
from distsgd.transport.framing import (
    FOLLOWER,
    Entry,
    MessageReader,
    Shape,
    send_reply,
    set_options,
    write_log,
)
from distsgd.transport.handshake import (
    PendingConnections,
    check_certificates,
    greet_worker,
    same_user,
    secured,
)
from distsgd.transport.shared_memory import NoSharedMemory, SharedLoop

__all__ = ["Address", "Port"]

_PAUSE_SECONDS = 0.1
_MOST_REFUSED = 100
"""Addresses of unauthenticated peers that are remembered and reported."""


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        unix: abstract name of its Unix socket.
        tcp: host and port.
        token: token of this training; not shown when printed.
    """

    unix: str
    tcp: tuple[str, int]
    token: bytes = field(repr=False)


class Port:
    """The server's end of its workers' channels.

    One thread serves all workers of this node; each worker of another node has its own thread.

    Args:
        server: where the messages go.
        shape: how large they are.
        decode: decodes compressed gradients into a number of rows.
        host: address to listen at for workers of other nodes.
        log: for a coordinator: waits for the next entries of a follower, by its number.
    """

    def __init__(
        self,
        server: ServerPort,
        shape: Shape,
        decode: Decode,
        host: str = "127.0.0.1",
        log: Callable[[int], Iterable[Entry]] | None = None,
    ) -> None:
        self._server, self._shape, self._decode, self._log = server, shape, decode, log
        check_certificates()  # so that this user gets the error, not a peer
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        name = f"distsgd-{secrets.token_hex(8)}"
        unix.bind(f"\0{name}")
        tcp = socket.create_server((host, 0))
        self.address = Address(name, tcp.getsockname()[:2], secrets.token_bytes(32))
        self._shared = SharedLoop(server, shape, decode)
        self._latest: dict[int, socket.socket] = {}  # worker -> its connection
        self._closed = threading.Event()
        self._refused: set[str] = set()
        self._listeners = (unix, tcp)
        for listener in self._listeners:
            listener.listen()
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._closed.set()
        for listener in self._listeners:
            # Closing alone does not wake a thread that waits in accept.
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._shared.close()

    def _accept(self, listener: socket.socket) -> None:
        pending = PendingConnections()
        while not self._closed.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:  # closed, or too many open files at the moment
                self._closed.wait(_PAUSE_SECONDS)
                continue
            try:
                self._admit(connection, pending)
            except OSError:
                connection.close()

    def _admit(self, connection: socket.socket, pending: PendingConnections) -> None:
        """Serve a connection in a thread of its own.

        Raises:
            OSError: too many connections are pending.
        """
        leave = pending.enter(connection)
        try:
            threading.Thread(target=self._serve, args=(connection, leave), daemon=True).start()
        except RuntimeError as error:
            leave()
            raise OSError(str(error)) from None

    def _greeted(self, connection: socket.socket) -> tuple[socket.socket, int, int] | None:
        """The connection (under TLS if that is on), worker and incarnation; None if refused."""
        near = connection.family == socket.AF_UNIX
        where = "this node" if near else str(connection.getpeername()[0])
        try:
            set_options(connection)
            if not near:
                connection.settimeout(10)
                connection = secured(connection, server=True)
            allowed = not near or same_user(connection)
            if allowed and (who := greet_worker(connection, self.address.token)) is not None:
                return connection, *who
        except (ChannelClosed, UsageError):  # such as certificates that are being replaced
            pass
        connection.close()
        if where not in self._refused and len(self._refused) < _MOST_REFUSED:
            self._refused.add(where)
            self._server.refused(where)
        return None

    def _serve(self, connection: socket.socket, leave: Callable[[], None]) -> None:
        near = connection.family == socket.AF_UNIX
        try:
            greeted = self._greeted(connection)
        except OSError:  # closed before the greeting
            connection.close()
            greeted = None
        finally:
            leave()
        if greeted is None:
            return
        connection, worker, incarnation = greeted
        with connection:
            if worker >= FOLLOWER:
                self._tell(connection, worker - FOLLOWER)
                return
            if near:
                connection = connection.dup()
            self._close_older(connection, worker)
            self._server.arrived(worker, incarnation)
            lost = partial(self._server.lost, worker, incarnation)
            try:
                if near:
                    self._shared.add(connection, worker, lost)
                else:
                    self._stream(connection, worker)
            except NoSharedMemory:  # the worker connects again, by TCP
                return
            except ChannelClosed:
                lost()

    def _close_older(self, connection: socket.socket, worker: int) -> None:
        """Shut down the connection of the previous process with this number."""
        before, self._latest[worker] = self._latest.get(worker), connection
        if before is not None:
            with suppress(OSError):  # usually it is closed already
                before.shutdown(socket.SHUT_RDWR)

    def _tell(self, connection: socket.socket, follower: int) -> None:
        """Send a follower the decisions."""
        if self._log is not None:
            with suppress(ChannelClosed):
                write_log(connection, partial(self._log, follower))

    def _stream(self, connection: socket.socket, worker: int) -> None:
        """Serve a worker whose gradients are sent over the connection."""
        reader = MessageReader(self._shape, self._decode)
        while True:
            message, size = reader.read(connection)
            with np.errstate(all="ignore"):  # the server finds what is not finite
                reply = self._server.exchange(worker, message, size)
            if reply is None:
                # Dismissed; it does not matter if it has gone.
                with suppress(ChannelClosed):
                    send_reply(connection, reply)
                return
            send_reply(connection, reply)
