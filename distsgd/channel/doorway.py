"""Connections that have not said yet who they are: so many at once, each for so long."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

__all__ = ["Doorway"]

_SECONDS = 10.0
_MOST = 64


class Doorway:
    """Whoever is in it has a time limit for all that he says, and makes room when it is full.

    A limit for each word alone could be drawn out byte by byte. Of those who are in it, the one
    who came first goes when another comes: workers are through within some milliseconds.

    Args:
        seconds: that a visitor may stay.
        most: visitors at once.
    """

    def __init__(self, seconds: float = _SECONDS, most: int = _MOST) -> None:
        self._seconds, self._most = seconds, most
        self._lock = threading.Lock()
        self._inside: dict[socket.socket, None] = {}  # in the order in which they came

    def enter(self, connection: socket.socket) -> Callable[[], None]:
        """Somebody has connected.

        Returns:
            to be called when it is known who it is, or the connection is closed.

        Raises:
            OSError: there is no room for another handle, or thread.
        """
        handle = connection.dup()  # TLS takes the first one over
        timer = threading.Timer(self._seconds, _cut_off, (handle,))
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError as error:
            handle.close()
            raise OSError(str(error)) from None
        with self._lock:
            if len(self._inside) >= self._most:
                first = next(iter(self._inside))
                del self._inside[first]
                _cut_off(first)
            self._inside[handle] = None
        return partial(self._leave, handle, timer)

    def _leave(self, handle: socket.socket, timer: threading.Timer) -> None:
        timer.cancel()
        with self._lock:
            self._inside.pop(handle, None)
        handle.close()


def _cut_off(connection: socket.socket) -> None:
    """Whoever reads from it or writes to it finds it closed."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
