"""Whether this process and a cluster agree about TLS, seen before Ray is asked to connect."""

from __future__ import annotations

import socket
import ssl

from distsgd.errors import RuntimeFailure
from distsgd.transport.tls import context, wanted

__all__ = ["check_tls"]

_SECONDS = 5.0
_SETTINGS = "RAY_USE_TLS=1, RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT"


def check_tls(address: str) -> None:
    """Ray would try for a minute, or end the process.

    Args:
        address: HOST:PORT of the head.

    Raises:
        RuntimeFailure: one of the two uses TLS and the other does not, or their certificates are
            of different authorities.
        UsageError: ours cannot be read.
    """
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    speaks = _problem(address, anybody) is None
    if not wanted():
        if speaks:
            raise RuntimeFailure(
                f"the Ray cluster at {address} uses TLS, and this process does not",
                f"Set {_SETTINGS}, as on the head",
            )
        return
    if not speaks:
        raise RuntimeFailure(
            f"the Ray cluster at {address} does not use TLS, and RAY_USE_TLS is set here",
            "Start its head with the same settings, or unset RAY_USE_TLS",
        )
    ours = context(server=False)
    ours.set_alpn_protocols(["h2"])
    if (problem := _problem(address, ours)) is not None:
        raise RuntimeFailure(
            f"no TLS with the Ray cluster at {address}: {problem}",
            "Its certificate and that of this machine have to be of the authority in "
            "RAY_TLS_CA_CERT",
        )


def _problem(address: str, how: ssl.SSLContext) -> str | None:
    host, _, port = address.rpartition(":")
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS) as plain,
            how.wrap_socket(plain, server_hostname=host) as secured,
        ):
            if how.verify_mode == ssl.CERT_REQUIRED:
                secured.recv(1)  # whether ours is taken is told after the greeting
    except (OSError, ssl.SSLError) as error:
        return getattr(error, "reason", None) or str(error)
    return None
