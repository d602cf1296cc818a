"""Connections that have not said yet who they are: so many at once, each for so long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

__all__ = ["Doorway"]

_SECONDS, _SECONDS_SAFE = 10.0, 1.0
_MOST, _MOST_SAFE = 64, 1024


class Doorway:
    """Whoever is in it has a time limit for all that he says, and makes room when it is full.

    A limit for each word alone could be drawn out byte by byte. When another comes and it is full,
    the one goes who came first, if that was some time ago: workers are through within a few
    times the way there and back, also when hundreds come at once.

    Args:
        seconds: that a visitor may stay.
        safe: seconds for which he is not sent away for others.
    """

    def __init__(self, seconds: float = _SECONDS, safe: float = _SECONDS_SAFE) -> None:
        self._seconds, self._safe = seconds, safe
        self._lock = threading.Lock()
        self._inside: dict[socket.socket, float] = {}  # since when, in that order

    def enter(self, connection: socket.socket) -> Callable[[], None]:
        """Somebody has connected.

        Returns:
            to be called when it is known who it is, or the connection is closed.

        Raises:
            OSError: there is no room for him.
        """
        self._make_room()
        handle = connection.dup()  # TLS takes the first one over
        timer = threading.Timer(self._seconds, _cut_off, (handle,))
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError as error:
            handle.close()
            raise OSError(str(error)) from None
        with self._lock:
            self._inside[handle] = time.monotonic()
        return partial(self._leave, handle, timer)

    def _make_room(self) -> None:
        with self._lock:
            if len(self._inside) < _MOST:
                return
            first, since = next(iter(self._inside.items()))
            if time.monotonic() - since > self._safe:
                del self._inside[first]
                _cut_off(first)
            elif len(self._inside) >= _MOST_SAFE:
                raise OSError("too many have connected within a second")

    def _leave(self, handle: socket.socket, timer: threading.Timer) -> None:
        timer.cancel()
        with self._lock:
            self._inside.pop(handle, None)
        handle.close()


def _cut_off(connection: socket.socket) -> None:
    """Whoever reads from it or writes to it finds it closed."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
