"""How quick the link between two machines is: messages of the sizes of a training, answered."""

from __future__ import annotations

import secrets
import socket
import struct
import threading
from contextlib import suppress
from statistics import median
from time import perf_counter

from distsgd.errors import ChannelClosed, RuntimeFailure
from distsgd.transport.framing import receive, send, set_options
from distsgd.transport.handshake import greet_server, greet_worker, secured

__all__ = ["LinkEcho", "link_trial"]

_SIZE = struct.Struct("<Q")
_MOST = 2**30
_PATIENCE, _SECONDS = 20.0, 0.5
_FEWEST, _SMALL = 3, 64


class LinkEcho:
    """Sends back what one peer sends that has the token; in a thread, until the peer leaves.

    Args:
        host: address to listen at.

    Attributes:
        port: at which it listens.
        token: that the peer must have.
    """

    def __init__(self, host: str) -> None:
        self.token = secrets.token_bytes(32)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self._listener.settimeout(_PATIENCE)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with self._listener, suppress(OSError, ChannelClosed):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(_PATIENCE)
                with secured(connection, server=True) as peer:
                    set_options(peer)
                    if greet_worker(peer, self.token) is not None:
                        _echo(peer)
                        return


def _echo(peer: socket.socket) -> None:
    header, buffer = bytearray(_SIZE.size), bytearray()
    while True:
        receive(peer, memoryview(header))
        (size,) = _SIZE.unpack(header)
        if size > _MOST:
            return
        if len(buffer) != size:
            buffer = bytearray(size)
        receive(peer, memoryview(buffer))
        send(peer, memoryview(buffer))


def link_trial(host: str, port: int, token: bytes, size: int) -> tuple[float, float]:
    """Measure the link to a `LinkEcho` for about a second.

    Args:
        host: where it listens.
        port: likewise.
        token: of it.
        size: bytes of a large message, such as those of W.

    Returns:
        Seconds of a small message, one way, and bytes a second of large ones.

    Raises:
        RuntimeFailure: the other machine does not answer.
    """
    try:
        with socket.create_connection((host, port), timeout=_PATIENCE) as plain:
            peer = secured(plain, server=False)
            set_options(peer)
            greet_server(peer, token, 0)
            peer.settimeout(_PATIENCE)
            small = _there_and_back(peer, _SMALL)
            large = _there_and_back(peer, size)
    except (OSError, ChannelClosed) as error:
        raise RuntimeFailure(
            f"no answer over the link to {host}: {error}",
            "Machines of a cluster have to reach each other at any port",
        ) from None
    # The difference leaves out latency and fixed costs, which both sizes have.
    return small / 2, 2 * size / max(large - small, large / 100)


def _there_and_back(peer: socket.socket, size: int) -> float:
    """Seconds of a message and of its answer, which is as large: the median."""
    message, answer = bytes(size), bytearray(size)
    times: list[float] = []
    until = perf_counter() + _SECONDS
    while len(times) < _FEWEST or perf_counter() < until:
        began = perf_counter()
        send(peer, _SIZE.pack(size))
        send(peer, message)
        receive(peer, memoryview(answer))
        times.append(perf_counter() - began)
    return median(times[1:])
