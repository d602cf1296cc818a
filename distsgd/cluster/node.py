"""The node of a cluster that runs on this machine: its record, its addresses, its end.

`check_head` tests an address before Ray connects to it: Ray itself would try for half a minute, and
then end the process from C++ with few words.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from distsgd.cluster.access import check_tls, check_token, cluster_home
from distsgd.data.folder_files import SMALL, read_inside
from distsgd.data.lock_file import LockFile
from distsgd.errors import RuntimeFailure, UsageError, storage_error
from distsgd.on_ray.session_guard import clear_session, processes_of
from distsgd.spelling import spelled, spelling

__all__ = [
    "PORT",
    "Node",
    "alone",
    "answers",
    "check_address",
    "check_head",
    "check_port",
    "free_port",
    "last_node",
    "note_file",
    "other_notes",
    "read_node",
    "stop_node",
    "way_to",
]


_entered = threading.local()
"""Whether this thread is within `alone`."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that `cluster start` has started on this machine.

    Attributes:
        address: HOST:PORT of the cluster's head.
        node_ip: address that this machine listens at.
        head: whether it is the head.
        folder: folder of Ray's files; every process has it in its environment.
        jobs_port: port at which a head accepts jobs; 0 on members.
    """

    address: str
    node_ip: str
    head: bool
    folder: str
    jobs_port: int = 0

    @property
    def processes(self) -> list[int]:
        """Ids of its running processes."""
        return processes_of(self.folder)

    @property
    def lives(self) -> bool:
        """Whether it is part of a cluster; Ray's log monitor can outlive a raylet that died."""
        running = set(map(_program, self.processes))
        return running >= ({"raylet", "gcs_server"} if self.head else {"raylet"})


def _program(pid: int) -> str:
    try:
        program = Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return ""
    return program.removesuffix(" (deleted)")  # Ray was reinstalled since


def note_file() -> Path:
    """The record of the node on this machine; several machines may share the folder."""
    return cluster_home() / f"node-{socket.gethostname()}.json"


def _noted(file: Path) -> Node | None:
    """The node that a record describes."""
    try:
        return Node(**json.loads(read_inside(file, most=SMALL)))
    except (OSError, ValueError, TypeError):
        return None


def last_node() -> Node | None:
    """The node started here last, running or not."""
    return _noted(note_file())


def other_notes() -> list[Node]:
    """The nodes that machines sharing the folder have started last."""
    files = [file for file in cluster_home().glob("node-*.json") if file != note_file()]
    return [node for node in map(_noted, files) if node is not None]


def read_node() -> Node | None:
    """The node that is running here, if any."""
    node = last_node()
    return node if node is not None and node.lives else None


@contextmanager
def alone() -> Iterator[None]:
    """While entered, no other command starts or stops a node here. Reentrant.

    Raises:
        StorageError: the folder cannot be written.
    """
    if getattr(_entered, "alone", False):
        yield
        return
    lock = LockFile(note_file().with_suffix(".lock"))
    try:
        lock.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise storage_error(error, lock.path) from None
    _entered.alone = True
    try:
        yield
    finally:
        _entered.alone = False
        lock.release()


def stop_node(folder: str | None = None) -> Node | None:
    """Stop the node that runs here; returns it, or None if there was none.

    Args:
        folder: folder of the node to stop, so that one started since is left alone.

    Raises:
        RuntimeFailure: a process does not end.
    """
    if last_node() is None:
        return None
    with alone():  # another command may have done it meanwhile
        node = last_node()
        if node is None or folder not in (None, node.folder):
            return None
        clear_session(Path(node.folder))
        if left := node.processes:
            raise RuntimeFailure(f"processes {left} do not end", "End them by hand, then try again")
        note_file().unlink(missing_ok=True)
    return node


PORT = 6379
"""The port on which a head listens by default."""

_SECONDS = 5.0


def check_address(node_ip: str) -> None:
    """Check that this machine can listen at an address.

    Raises:
        UsageError: it is not of this machine, or not of IP version 4.
    """
    try:
        if ipaddress.ip_address(node_ip).version != 4:
            raise UsageError(
                f"{spelling().given('node_ip', node_ip)} is an address of IP version 6",
                "Give one of version 4, which is what channels listen at",
            )
        free_port(node_ip)
    except (ValueError, OSError):
        raise UsageError(
            f"{spelling().given('node_ip', node_ip)} is no address of this machine",
            "`ip addr` lists them",
        ) from None


def check_port(node_ip: str, name: str, port: int) -> None:
    """Check that a port is free; Ray would take another, or give an obscure error.

    Args:
        node_ip: the address.
        name: the argument that gives the port.
        port: its number.

    Raises:
        UsageError: it is not.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((node_ip, port))
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise UsageError(
                f"{spelling().given(name, port)} of {node_ip} cannot be used: {why}",
                "Give another port",
            ) from None


def free_port(node_ip: str) -> int:
    """A port of an address at which nothing listens now."""
    with socket.socket() as probe:
        probe.bind((node_ip, 0))
        port: int = probe.getsockname()[1]
        return port


def answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def way_to(address: str) -> str:
    """The address of this machine from which a head is reached.

    Raises:
        UsageError: ``address`` is none.
        RuntimeFailure: nothing answers there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"{spelled('join')} cannot be {address}", "Give HOST:PORT of the head")
    try:
        with socket.create_connection((host, int(port)), timeout=_SECONDS) as found:
            own: str = found.getsockname()[0]
            return own
    except OSError as error:
        raise RuntimeFailure(
            f"no head answers at {address}: {error.strerror or error}",
            "Look whether it listens at an address that this machine reaches",
        ) from None


_PROBE_SECONDS = 5.0
_SECONDS_TO_ANSWER = 2.0
_REQUEST = b"GET / HTTP/1.0\r\n\r\n"


def check_head(address: str, settings: dict[str, str]) -> None:
    """Check that a head listens, and that it accepts our token and our certificates.

    Args:
        address: HOST:PORT of the head.
        settings: environment variables beside those that are set.

    Raises:
        RuntimeFailure: nothing answers, it is not a head, or it does not accept them.
        UsageError: our certificates cannot be read.
    """
    host, _, port = address.rpartition(":")
    where = (host.strip("[]"), int(port))
    try:
        connection = socket.create_connection(where, timeout=_PROBE_SECONDS)
    except OSError as error:
        raise RuntimeFailure(
            f"no Ray cluster answers at {address}: {error.strerror or error}",
            "Look whether its head is up, and whether this machine can reach it",
        ) from None
    with connection:
        if _speaks_http(connection):
            raise RuntimeFailure(
                f"{address} is not the head of a Ray cluster: it serves web pages and jobs",
                f"Give HOST:PORT of the head: {_likely_head(host, int(port))}",
            )
    check_tls(address)
    check_token(address, settings)


def _likely_head(host: str, jobs_port: int) -> str:
    """The head with this jobs port, if it is on this machine, else the one at the usual port."""
    node = last_node()
    return node.address if node and node.jobs_port == jobs_port else f"{host}:{PORT}"


def _speaks_http(connection: socket.socket) -> bool:
    """Whether the peer speaks HTTP/1; heads speak HTTP/2."""
    answer = b""
    with suppress(OSError):
        connection.settimeout(_SECONDS_TO_ANSWER)
        connection.sendall(_REQUEST)
        answer = connection.recv(8)
    return answer.startswith(b"HTTP/")
