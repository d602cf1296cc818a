"""Serves all workers that share memory with the server, in one thread.

A thread for each would be woken at nearly the same time as the others, and they would take turns
at the interpreter while the workers wait.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress

import numpy as np

from distsgd.errors import ChannelClosed
from distsgd.transport.base import Decode, ServerPort, Work
from distsgd.transport.framing import PushReader, Shape, send_work
from distsgd.transport.shared_memory import SharedMemory

__all__ = ["SharedLoop"]

_MOST_BYTES = 1 << 16


class _Guest:
    """One worker: what has come of its next message, and how it is given work."""

    def __init__(
        self, connection: socket.socket, worker: int, shape: Shape, decode: Decode
    ) -> None:
        self.connection, self.worker = connection, worker
        self._memory = SharedMemory.offer(connection, shape)
        self.reader = PushReader(shape, decode, self._memory.sums)
        self.content = b""
        self.dismissed = False
        connection.setblocking(False)

    def give(self, work: Work | None) -> None:
        """Write W, and say so. The message is short, and the last one has been read."""
        if work is None:
            self.dismissed = True
        else:
            self._memory.weights[...] = work[1]
        with suppress(ChannelClosed):  # the loop notices
            send_work(self.connection, work, shared=True)

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
        self._guests: dict[int, tuple[_Guest, ExitStack, Callable[[], None]]] = {}
        self._poll = select.epoll()
        self._over = os.eventfd(0)
        self._poll.register(self._over, select.EPOLLIN)
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, connection: socket.socket, worker: int, lost: Callable[[], None]) -> None:
        """Serve one worker more, which has been greeted; the connection is closed here.

        Args:
            connection: to it.
            worker: its number.
            lost: called if the connection ends before the work does.

        Raises:
            ChannelClosed: memory cannot be shared with it, or nobody is served any more.
        """
        with ExitStack() as stack:
            stack.enter_context(connection)
            guest = _Guest(connection, worker, self._shape, self._decode)
            stack.enter_context(self._server.attached(worker, guest.give))
            number = connection.fileno()
            self._guests[number] = guest, stack.pop_all(), lost
        try:
            self._poll.register(connection, select.EPOLLIN)
        except ValueError:  # it was closed while the worker was greeted
            if (found := self._guests.pop(number, None)) is not None:
                found[1].close()
            raise ChannelClosed("the server has ended") from None

    def close(self) -> None:
        """Serve nobody any more."""
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
            self._serve(number)
        return True

    def _serve(self, number: int) -> None:
        guest, stack, lost = self._guests[number]
        try:
            if not guest.read():
                return
            push, size = guest.reader.parse(guest.content)
            guest.content = b""
            self._server.submit(guest.worker, push, size)
        except Exception as error:  # of the server it is told to the driver by the server
            self._poll.unregister(number)
            del self._guests[number]
            stack.close()
            if isinstance(error, ChannelClosed) and not guest.dismissed:
                lost()

    def _end(self) -> None:
        for _, stack, _ in self._guests.values():
            stack.close()
        self._poll.close()
        os.close(self._over)
