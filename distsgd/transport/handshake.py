"""How the two ends of a connection make sure of each other.

Each sends random bytes, and answers the other's with an HMAC under the token of the training. The
token itself never travels; what is overheard is of no use later.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import struct

from distsgd.errors import ChannelClosed
from distsgd.transport.framing import receive, send

__all__ = ["greet_server", "greet_worker", "same_user"]

_NONCE = 32
_HELLO = struct.Struct(f"<{_NONCE}s32sI")
_PATIENCE = 10.0


def _proof(token: bytes, *parts: bytes) -> bytes:
    return hmac.digest(token, b"|".join(parts), "sha256")


def greet_worker(connection: socket.socket, token: bytes) -> int | None:
    """The server's side: the number of a worker that may be here, or None for a stranger."""
    nonce = secrets.token_bytes(_NONCE)
    connection.settimeout(_PATIENCE)
    try:
        send(connection, nonce)
        hello = bytearray(_HELLO.size)
        receive(connection, memoryview(hello))
        theirs, proof, worker = _HELLO.unpack(hello)
        if not hmac.compare_digest(proof, _proof(token, b"worker", nonce, b"%d" % worker)):
            return None
        send(connection, _proof(token, b"server", theirs))
    except ChannelClosed:
        return None
    connection.settimeout(None)
    return int(worker)


def greet_server(connection: socket.socket, token: bytes, worker: int) -> None:
    """The worker's side.

    Raises:
        ChannelClosed: it is not our server, or does not want us.
    """
    connection.settimeout(_PATIENCE)
    theirs, nonce = bytearray(_NONCE), secrets.token_bytes(_NONCE)
    receive(connection, memoryview(theirs))
    proof = _proof(token, b"worker", bytes(theirs), b"%d" % worker)
    send(connection, _HELLO.pack(nonce, proof, worker))
    answer = bytearray(32)
    receive(connection, memoryview(answer))
    if not hmac.compare_digest(answer, _proof(token, b"server", nonce)):
        raise ChannelClosed("the peer of a channel is not our parameter server")
    connection.settimeout(None)


def same_user(connection: socket.socket) -> bool:
    """Whether the peer of a Unix socket runs as our user; the kernel vouches for it."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return bool(struct.unpack("iII", peer)[1] == os.getuid())
