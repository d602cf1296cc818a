"""Addresses and ports of this machine, as a node of a cluster needs them."""

from __future__ import annotations

import ipaddress
import socket

from distsgd.errors import RuntimeFailure, UsageError

__all__ = ["PORT", "answers", "check_address", "check_port", "free_port", "way_to"]

PORT = 6379
"""The port on which a head listens by default."""

_SECONDS = 5.0


def check_address(node_ip: str) -> None:
    """See whether one can listen at an address.

    Raises:
        UsageError: it is not of this machine, or not of IP version 4.
    """
    try:
        if ipaddress.ip_address(node_ip).version != 4:
            raise UsageError(
                f"--node-ip {node_ip} is an address of IP version 6",
                "Give one of version 4, which is what channels listen at",
            )
        free_port(node_ip)
    except (ValueError, OSError):
        raise UsageError(
            f"--node-ip {node_ip} is no address of this machine", "`ip addr` shows those it has"
        ) from None


def check_port(node_ip: str, flag: str, port: int) -> None:
    """See whether one can listen at a port; Ray would take another, or say little.

    Args:
        node_ip: the address.
        flag: by which the port was given.
        port: its number.

    Raises:
        UsageError: somebody else does.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((node_ip, port))
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise UsageError(
                f"{flag} {port} of {node_ip} cannot be used: {why}", "Give another port"
            ) from None


def free_port(node_ip: str) -> int:
    """A port of an address that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind((node_ip, 0))
        port: int = probe.getsockname()[1]
        return port


def answers(address: str) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def way_to(address: str) -> str:
    """The address of this machine that a head sees.

    Raises:
        UsageError: ``address`` is none.
        RuntimeFailure: nobody answers there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--join cannot be {address}", "Give HOST:PORT of the head")
    try:
        with socket.create_connection((host, int(port)), timeout=_SECONDS) as found:
            own: str = found.getsockname()[0]
            return own
    except OSError as error:
        raise RuntimeFailure(
            f"no head answers at {address}: {error.strerror or error}",
            "Look whether it was started with --node-ip of an address that this machine reaches",
        ) from None
