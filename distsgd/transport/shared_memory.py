"""Memory that one worker and one server share: W for the worker, and the sums it pushes.

It is an anonymous file that lives as long as a process holds it, so nothing is left behind whatever
dies, and only a process that was given its descriptor can open it.

There are no locks. W is written by the server while the worker waits for work, and the sums by the
worker while it has work; a message on the socket between them says whose turn it is.

Serves all workers that share memory with the server, in one thread.

A thread for each would be woken at nearly the same time as the others, and they would take turns
at the interpreter while the workers wait.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.messages import ResidualRequest
from distsgd.errors import ChannelClosed
from distsgd.transport.base import Decode, Membership, Reply, ServerPort
from distsgd.transport.framing import MessageReader, Shape, send_membership, send_reply
from distsgd.transport.shared_file import anonymous_file, row_bytes

__all__ = ["NoSharedMemory", "SharedLoop", "SharedMemory"]


_MADE, _REFUSED = b".", b"-"


class NoSharedMemory(ChannelClosed):
    """The system gives no memory to share: an old kernel, or a filter of system calls."""


class SharedMemory:
    """The memory of one connection, as arrays.

    Args:
        file: descriptor of the anonymous file; closed here.
        shape: how large messages are.

    Attributes:
        weights: the server's range of flat W as leased, shape (parameters,).
        sums: node sums, shape (halves * most_nodes, parameters).
    """

    def __init__(self, file: int, shape: Shape) -> None:
        try:
            memory = mmap.mmap(file, 0)
        finally:
            os.close(file)
        dtype = np.dtype(shape.dtype)
        row = _row_bytes(shape) // dtype.itemsize
        rows = np.frombuffer(memory, dtype).reshape(_rows(shape), row)
        self.weights: Floats = rows[0, : shape.parameters]
        self.sums: Floats = rows[1:, : shape.parameters]

    @classmethod
    def offer(cls, connection: socket.socket, shape: Shape) -> SharedMemory:
        """Make it, and hand it to the worker on the other end of a Unix socket.

        Raises:
            NoSharedMemory: it cannot be made, which the worker hears too.
            ChannelClosed: the worker has gone.
        """
        try:
            file = anonymous_file(_row_bytes(shape) * _rows(shape))
        except OSError as error:
            with suppress(OSError):
                connection.sendall(_REFUSED)
            raise NoSharedMemory(f"memory cannot be shared: {error.strerror}") from None
        try:
            socket.send_fds(connection, [_MADE], [file])
        except OSError as error:
            os.close(file)
            raise ChannelClosed(f"memory cannot be shared: {error}") from None
        return cls(file, shape)

    @classmethod
    def take(cls, connection: socket.socket, shape: Shape) -> SharedMemory:
        """Take it from the server on the other end.

        Raises:
            NoSharedMemory: the server cannot make it.
            ChannelClosed: it does not come, or has another size.
        """
        try:
            said, files, _, _ = socket.recv_fds(connection, 1, 1)
        except OSError:
            said, files = b"", []
        if said == _REFUSED:
            raise NoSharedMemory("the parameter server cannot share memory")
        if not files or os.fstat(files[0]).st_size != _row_bytes(shape) * _rows(shape):
            raise ChannelClosed("the parameter server has not shared its memory")
        return cls(files[0], shape)


def _rows(shape: Shape) -> int:
    return 1 + shape.halves * shape.most_nodes


def _row_bytes(shape: Shape) -> int:
    return row_bytes(shape.parameters, shape.dtype)


_MOST_BYTES = 1 << 16


class _Peer:
    """One worker: what has come of its next message, and how it is given work."""

    def __init__(
        self, connection: socket.socket, worker: int, shape: Shape, decode: Decode
    ) -> None:
        self.connection, self.worker = connection, worker
        self._memory = SharedMemory.offer(connection, shape)
        self.reader = MessageReader(shape, decode, self._memory.sums)
        self.content = b""
        self.dismissed = False
        connection.setblocking(False)

    def give(self, reply: Reply | None) -> None:
        """Write W, and say so. The message is short, and the last one has been read."""
        if isinstance(reply, Membership):
            with suppress(ChannelClosed):
                send_membership(self.connection, reply)
            return
        if reply is None:
            self.dismissed = True
        elif not isinstance(reply, ResidualRequest):
            self._memory.weights[...] = reply[1]
        with suppress(ChannelClosed):  # the loop notices
            send_reply(self.connection, reply, shared=True)

    def read(self) -> bool:
        """Take what has come; returns whether it is a whole message.

        Raises:
            ChannelClosed: the worker has gone.
        """
        try:
            found = self.connection.recv(_MOST_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            found = b""
        if not found:
            raise ChannelClosed("the peer of a channel has gone")
        self.content = self.content + found if self.content else found
        return len(self.content) >= self.reader.length(self.content)


class SharedLoop:
    """The server's end of the channels that share memory.

    Args:
        server: where the messages go.
        shape: how large they are.
        decode: what encoded gradients are decoded with.
    """

    def __init__(self, server: ServerPort, shape: Shape, decode: Decode) -> None:
        self._server, self._shape, self._decode = server, shape, decode
        self._peers: dict[int, tuple[_Peer, ExitStack, Callable[[], None]]] = {}
        self._poll = select.epoll()
        self._over = os.eventfd(0)
        self._poll.register(self._over, select.EPOLLIN)
        self._bell = server.bell
        if self._bell is not None:
            self._poll.register(self._bell, select.EPOLLIN)
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, connection: socket.socket, worker: int, lost: Callable[[], None]) -> None:
        """Serve one worker more, which has been greeted; the connection is closed here.

        Args:
            connection: to it.
            worker: its number.
            lost: called if the connection ends before the work does.

        Raises:
            ChannelClosed: memory cannot be shared with it, or the server has stopped.
        """
        with ExitStack() as stack:
            stack.enter_context(connection)
            peer = _Peer(connection, worker, self._shape, self._decode)
            stack.enter_context(self._server.attached(worker, peer.give))
            number = connection.fileno()
            self._peers[number] = peer, stack.pop_all(), lost
        try:
            self._poll.register(connection, select.EPOLLIN)
        except ValueError:  # it was closed while the worker was greeted
            if (found := self._peers.pop(number, None)) is not None:
                found[1].close()
            raise ChannelClosed("the server has ended") from None

    def close(self) -> None:
        """Stop serving."""
        os.eventfd_write(self._over, 1)

    def _run(self) -> None:
        # A diverging W gives infinities, which the server finds; no warnings about them.
        with np.errstate(all="ignore"):
            while self._turn():
                pass

    def _turn(self) -> bool:
        """Serve who has sent something; False when it is over."""
        for number, _ in self._poll.poll():
            if number == self._over:
                self._end()
                return False
            if number == self._bell:
                os.eventfd_read(number)
                self._server.rung()
            else:
                self._serve(number)
        return True

    def _serve(self, number: int) -> None:
        peer, stack, lost = self._peers[number]
        try:
            if not peer.read():
                return
            message, size = peer.reader.parse(peer.content)
            peer.content = b""
            self._server.submit(peer.worker, message, size)
        except Exception as error:  # the server reports its own error to the driver
            self._poll.unregister(number)
            del self._peers[number]
            stack.close()
            if isinstance(error, ChannelClosed) and not peer.dismissed:
                lost()

    def _end(self) -> None:
        for _, stack, _ in self._peers.values():
            stack.close()
        self._poll.close()
        os.close(self._over)
