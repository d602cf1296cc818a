"""TLS between nodes, with the certificates that the Ray cluster itself is set up with.

Ray takes them from the environment: RAY_USE_TLS=1, RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and
RAY_TLS_CA_CERT. Both ends show a certificate, as Ray's own processes do.
"""

from __future__ import annotations

import os
import socket
import ssl

from distsgd.errors import ChannelClosed, UsageError

__all__ = ["check_certificates", "context", "secured", "wanted"]


def secured(connection: socket.socket, *, server: bool) -> socket.socket:
    """The connection under TLS if the cluster uses it, otherwise as it is.

    Raises:
        ChannelClosed: the other end has no certificate of the same authority.
        UsageError: a certificate cannot be read.
    """
    if not wanted():
        return connection
    try:
        return context(server).wrap_socket(connection, server_side=server)
    except (ssl.SSLError, OSError) as error:
        connection.close()
        raise ChannelClosed(f"no TLS with the other end of a channel: {error}") from None


def check_certificates() -> None:
    """See whether there are certificates, if the cluster uses TLS.

    Raises:
        UsageError: they cannot be read.
    """
    if wanted():
        context(server=True)


def wanted() -> bool:
    """Whether Ray is set to use TLS."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def context(server: bool) -> ssl.SSLContext:
    """With Ray's certificates, and those of the other end required.

    Raises:
        UsageError: they cannot be read.
    """
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    # Nodes are known by addresses that change; the authority is the cluster's own.
    found.check_hostname = False
    found.verify_mode = ssl.CERT_REQUIRED
    names = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
    certificate, key, authority = (os.environ.get(name, "") for name in names)
    try:
        found.load_cert_chain(certificate, key)
        found.load_verify_locations(authority)
    except OSError as error:
        raise UsageError(
            f"RAY_USE_TLS is set, but the certificates cannot be read: {error}",
            f"Let {', '.join(names)} name files",
        ) from None
    return found
