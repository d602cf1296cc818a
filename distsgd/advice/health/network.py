"""The network: the loopback interface, the ports of a head, proxies, TLS."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import requests

from distsgd.advice.health.finding import Finding, ok, problem, warning
from distsgd.cluster.local_node import JOBS_PORT
from distsgd.cluster.node import PORT, read_node
from distsgd.transport.ray_variables import TLS_FILES, USE_TLS, uses_tls

__all__ = ["loopback", "ports", "proxies", "tls"]

_HERE = "127.0.0.1"
_SECONDS = 2.0
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def loopback() -> Iterator[Finding]:
    """Whether this machine reaches itself, by address and by name."""
    try:
        with socket.create_server((_HERE, 0)) as server:
            socket.create_connection(server.getsockname(), _SECONDS).close()
    except OSError as error:
        yield problem(
            "loopback",
            f"this machine does not reach itself at {_HERE}: {error.strerror or error}",
            "Bring the interface up (ip link set lo up); --workers 0 does without",
        )
        return
    if not _is_here("localhost"):
        yield warning(
            "loopback",
            f"the name localhost does not lead to {_HERE}",
            f"Add the line `{_HERE} localhost` to /etc/hosts",
        )
        return
    yield ok("loopback", f"this machine reaches itself at {_HERE}")


def _is_here(name: str) -> bool:
    with suppress(OSError):
        return any(
            entry[4][0] in (_HERE, "::1")
            for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        )
    return False


def ports() -> Iterator[Finding]:
    """Whether the ports are free at which `cluster start --head` listens."""
    if (node := read_node()) is not None:
        yield ok("ports", f"this machine is a node of the cluster at {node.address}")
        return
    taken = [port for port in (PORT, JOBS_PORT) if not _is_free(port)]
    for port in taken:
        name = "--port" if port == PORT else "--jobs-port"
        yield warning(
            "ports",
            f"another program listens at port {port}, where a head does"
            + (" (Redis does by default)" if port == PORT else ""),
            f"Give `distsgd cluster start --head` another one with {name}, or end that program",
        )
    if not taken:
        yield ok("ports", f"{PORT} and {JOBS_PORT}, where a head listens, are free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HERE, port))
        except OSError:
            return False
    return True


def proxies(address: str | None = None) -> Iterator[Finding]:
    """Whether a proxy stands between this machine and itself, or its cluster.

    Args:
        address: HOST:PORT of the head of a cluster; None for none, "auto" for the one known here.
    """
    given = {
        name: value
        for name in _PROXIES
        if (value := os.environ.get(name) or os.environ.get(name.upper()))
    }
    if not given:
        yield ok("proxies", "none is set")
        return
    for name, value in given.items():
        if not _is_address(value):
            yield problem(
                "proxies", f"{name}={_without_password(value)} is no address of a proxy",
                "Write it as http://HOST:PORT, or unset it",
            )  # fmt: skip
    hosts = [_HERE, "localhost"]
    if address is not None and ":" in address:
        hosts.append(address.rpartition(":")[0].strip("[]"))
    behind = [host for host in hosts if not _bypasses(host)]
    if behind:
        excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        wanted = ",".join(filter(None, [excepted, *behind]))
        yield warning(
            "proxies",
            f"{', '.join(given)} sends requests to {' and '.join(behind)} through a proxy, which "
            "cannot reach them",
            f"Except them: export no_proxy={wanted}",
        )
    else:
        yield ok("proxies", f"{', '.join(given)} leaves {' and '.join(hosts)} out")


def _is_address(value: str) -> bool:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _without_password(value: str) -> str:
    return value.rpartition("@")[2]


def _bypasses(host: str) -> bool:
    """Whether requests to a host go there directly, by the rules of the library that sends them."""
    return bool(requests.utils.should_bypass_proxies(f"http://{host}/", no_proxy=None))


def tls() -> Iterator[Finding]:
    """Whether the files of TLS can be read, if Ray is to use it."""
    if not uses_tls():
        return
    missing = [name for name in TLS_FILES if not os.environ.get(name)]
    if missing:
        yield problem(
            "tls", f"{USE_TLS} is set, and {' and '.join(missing)} not",
            f"Name the files of the certificates, or unset {USE_TLS}",
        )  # fmt: skip
        return
    bad = [name for name in TLS_FILES if not _readable(os.environ[name])]
    for name in bad:
        yield problem(
            "tls", f"{name}={os.environ[name]} cannot be read", "Check the path and its mode"
        )
    if not bad:
        yield ok("tls", "its files can be read")


def _readable(path: str) -> bool:
    return Path(path).is_file() and os.access(path, os.R_OK)
