"""How the two ends of a connection make sure of each other.

Each sends random bytes, and answers the other's with an HMAC under the token of the training. The
token itself never travels; what is overheard is of no use later.

Unauthenticated connections: their number and their time are limited.

TLS between nodes, with the certificates that the Ray cluster itself is set up with.

Ray takes them from the environment: RAY_USE_TLS=1, RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and
RAY_TLS_CA_CERT. Both ends show a certificate, as Ray's own processes do.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from distsgd.errors import ChannelClosed, UsageError
from distsgd.transport.framing import receive, send
from distsgd.transport.ray_variables import TLS_FILES, USE_TLS, uses_tls

__all__ = [
    "PendingConnections",
    "check_certificates",
    "context",
    "greet_server",
    "greet_worker",
    "same_user",
    "secured",
]


_NONCE = 32
_HELLO = struct.Struct(f"<{_NONCE}s32sII")
_PATIENCE = 10.0


def _proof(token: bytes, *parts: bytes) -> bytes:
    return hmac.digest(token, b"|".join(parts), "sha256")


def greet_worker(connection: socket.socket, token: bytes) -> tuple[int, int] | None:
    """The server's side: number and incarnation of a worker; None for one without the token."""
    nonce = secrets.token_bytes(_NONCE)
    connection.settimeout(_PATIENCE)
    try:
        send(connection, nonce)
        hello = bytearray(_HELLO.size)
        receive(connection, memoryview(hello))
        theirs, proof, *who = _HELLO.unpack(hello)
        if not hmac.compare_digest(proof, _proof(token, b"worker", nonce, b"%d,%d" % tuple(who))):
            return None
        send(connection, _proof(token, b"server", theirs))
    except ChannelClosed:
        return None
    connection.settimeout(None)
    return int(who[0]), int(who[1])


def greet_server(
    connection: socket.socket, token: bytes, worker: int, incarnation: int = 1
) -> None:
    """The worker's side.

    Raises:
        ChannelClosed: it is not our server, or does not want us.
    """
    connection.settimeout(_PATIENCE)
    theirs, nonce = bytearray(_NONCE), secrets.token_bytes(_NONCE)
    receive(connection, memoryview(theirs))
    proof = _proof(token, b"worker", bytes(theirs), b"%d,%d" % (worker, incarnation))
    send(connection, _HELLO.pack(nonce, proof, worker, incarnation))
    answer = bytearray(32)
    receive(connection, memoryview(answer))
    if not hmac.compare_digest(answer, _proof(token, b"server", nonce)):
        raise ChannelClosed("the peer of a channel is not our parameter server")
    connection.settimeout(None)


def same_user(connection: socket.socket) -> bool:
    """Whether the peer of a Unix socket runs as our user, according to the kernel."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return bool(struct.unpack("iII", peer)[1] == os.getuid())


_SECONDS, _SECONDS_SAFE = 10.0, 1.0
_MOST, _MOST_SAFE = 64, 1024


class PendingConnections:
    """Peers that are not authenticated yet: at most 64, each dropped after 10 s.

    The limit holds for the whole greeting: one for each read could be drawn out byte by byte. When
    another peer connects and there are 64, the oldest is dropped, unless it is younger than a
    second: workers need only a few round trips, even when hundreds connect at once.

    Args:
        seconds: time limit of a greeting.
        safe: seconds for which a peer is not dropped in favour of others.
    """

    def __init__(self, seconds: float = _SECONDS, safe: float = _SECONDS_SAFE) -> None:
        self._seconds, self._safe = seconds, safe
        self._lock = threading.Lock()
        self._pending: dict[socket.socket, float] = {}  # since when, in that order

    def enter(self, connection: socket.socket) -> Callable[[], None]:
        """Add a connection.

        Returns:
            a function to call once the peer is authenticated or the connection is closed.

        Raises:
            OSError: too many are pending.
        """
        self._drop_oldest()
        handle = connection.dup()  # TLS takes over the original
        timer = threading.Timer(self._seconds, _cut_off, (handle,))
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError as error:
            handle.close()
            raise OSError(str(error)) from None
        with self._lock:
            self._pending[handle] = time.monotonic()
        return partial(self._leave, handle, timer)

    def _drop_oldest(self) -> None:
        with self._lock:
            if len(self._pending) < _MOST:
                return
            first, since = next(iter(self._pending.items()))
            if time.monotonic() - since > self._safe:
                del self._pending[first]
                _cut_off(first)
            elif len(self._pending) >= _MOST_SAFE:
                raise OSError("too many have connected within a second")

    def _leave(self, handle: socket.socket, timer: threading.Timer) -> None:
        timer.cancel()
        with self._lock:
            self._pending.pop(handle, None)
        handle.close()


def _cut_off(connection: socket.socket) -> None:
    """Shut a connection down, so that reads and writes fail at once."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def secured(connection: socket.socket, *, server: bool) -> socket.socket:
    """Wrap a connection in TLS if the cluster uses it.

    Raises:
        ChannelClosed: the peer has no certificate of the same authority.
        UsageError: a certificate cannot be read.
    """
    if not uses_tls():
        return connection
    try:
        return context(server).wrap_socket(connection, server_side=server)
    except (ssl.SSLError, OSError) as error:
        connection.close()
        raise ChannelClosed(f"no TLS with the other end of a channel: {error}") from None


def check_certificates() -> None:
    """Check that the certificates can be read, if the cluster uses TLS.

    Raises:
        UsageError: they cannot be read.
    """
    if uses_tls():
        context(server=True)


def context(server: bool) -> ssl.SSLContext:
    """A TLS context with Ray's certificates, which requires one of the peer.

    Raises:
        UsageError: they cannot be read.
    """
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    # Addresses of nodes change; the authority belongs to the cluster.
    found.check_hostname = False
    found.verify_mode = ssl.CERT_REQUIRED
    certificate, key, authority = (os.environ.get(name, "") for name in TLS_FILES)
    try:
        found.load_cert_chain(certificate, key)
        found.load_verify_locations(authority)
    except OSError as error:
        raise UsageError(
            f"{USE_TLS} is set, but the certificates cannot be read: {error}",
            f"Let {', '.join(TLS_FILES)} name files",
        ) from None
    return found
