"""What every listener of distsgd for browsers shares: how a port is opened, headers of answers."""

from __future__ import annotations

import socket
from pathlib import Path

from distsgd.data.locations import home_folder
from distsgd.errors import UsageError

__all__ = ["HEADERS", "LOOPBACK", "listen", "serve_token_file"]

LOOPBACK = "127.0.0.1"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Headers of every response: nothing is loaded from elsewhere, no script stands in a page."""


def serve_token_file() -> Path:
    """The token of `distsgd serve`, made when first needed, for this user's eyes only."""
    return home_folder() / "serve-token"


def listen(port: int, host: str = LOOPBACK) -> socket.socket:
    """A socket that listens.

    Args:
        port: 0 for any that is free.
        host: an address of this machine, or its name.

    Raises:
        UsageError: the address cannot be used.
    """
    listener = None
    try:
        if not 0 <= port < 1 << 16:
            raise OverflowError
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
    except (OSError, OverflowError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        what = f"port {port}" if host == LOOPBACK else f"{host}:{port}"
        why = getattr(error, "strerror", None) or "it is no port"
        raise UsageError(f"{what} cannot be used: {why}", "Choose another, or none") from None
    listener.setblocking(False)
    return listener
