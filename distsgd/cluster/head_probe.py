"""Whether the head of a Ray cluster listens at an address, seen before Ray is asked to connect.

Ray itself would try for half a minute, say little, and end the process from C++.
"""

from __future__ import annotations

import socket
from contextlib import suppress

from distsgd.cluster.access import check_token
from distsgd.cluster.cluster_tls import check_tls
from distsgd.cluster.node import last_node
from distsgd.cluster.node_address import PORT
from distsgd.errors import RuntimeFailure

__all__ = ["check_head"]

_SECONDS = 5.0
_SECONDS_TO_ANSWER = 2.0
_REQUEST = b"GET / HTTP/1.0\r\n\r\n"


def check_head(address: str, settings: dict[str, str]) -> None:
    """See that a head listens, and that it takes our token and our certificates.

    Args:
        address: HOST:PORT of the head.
        settings: environment variables beside those that are set.

    Raises:
        RuntimeFailure: nobody answers there, it is no head, or it does not take what we have.
        UsageError: our certificates cannot be read.
    """
    host, _, port = address.rpartition(":")
    where = (host.strip("[]"), int(port))
    try:
        connection = socket.create_connection(where, timeout=_SECONDS)
    except OSError as error:
        raise RuntimeFailure(
            f"no Ray cluster answers at {address}: {error.strerror or error}",
            "Look whether its head is up, and whether this machine can reach it",
        ) from None
    with connection:
        if _speaks_http(connection):
            raise RuntimeFailure(
                f"{address} is no head of a Ray cluster: web pages and jobs are served there",
                f"Give HOST:PORT of the head: {_likely_head(host, int(port))}",
            )
    check_tls(address)
    check_token(address, settings)


def _likely_head(host: str, jobs_port: int) -> str:
    """The head whose jobs port that is, if it is of this machine, else at the usual port."""
    node = last_node()
    return node.address if node and node.jobs_port == jobs_port else f"{host}:{PORT}"


def _speaks_http(connection: socket.socket) -> bool:
    """Whether it is of version 1; heads speak version 2, and say so in bytes."""
    answer = b""
    with suppress(OSError):
        connection.settimeout(_SECONDS_TO_ANSWER)
        connection.sendall(_REQUEST)
        answer = connection.recv(8)
    return answer.startswith(b"HTTP/")
