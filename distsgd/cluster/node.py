"""What node of a cluster runs on this machine: written down, looked up, ended."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distsgd.cluster.access import cluster_home
from distsgd.data.folder_files import SMALL, read_inside
from distsgd.data.lock_file import LockFile
from distsgd.errors import RuntimeFailure, storage_error
from distsgd.on_ray.session_guard import clear_session, processes_of

__all__ = [
    "Node",
    "alone",
    "last_node",
    "note_file",
    "other_notes",
    "read_node",
    "stop_node",
]


_entered = threading.local()
"""Whether this thread is within `alone`."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """What `cluster start` has started here.

    Attributes:
        address: HOST:PORT of the cluster's head.
        node_ip: the address that this machine listens at.
        head: whether it is the head.
        folder: of Ray's files; every process of it has the folder in its environment.
        jobs_port: where the head takes jobs; 0 on others.
    """

    address: str
    node_ip: str
    head: bool
    folder: str
    jobs_port: int = 0

    @property
    def processes(self) -> list[int]:
        """Those that live."""
        return processes_of(self.folder)

    @property
    def lives(self) -> bool:
        """Whether it is part of a cluster: Ray's log monitor, say, outlives a raylet that died."""
        running = set(map(_program, self.processes))
        return running >= ({"raylet", "gcs_server"} if self.head else {"raylet"})


def _program(pid: int) -> str:
    try:
        program = Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return ""
    return program.removesuffix(" (deleted)")  # Ray was installed anew since


def note_file() -> Path:
    """Where it is written what runs here; several machines may share the folder."""
    return cluster_home() / f"node-{socket.gethostname()}.json"


def _noted(file: Path) -> Node | None:
    """The node that a note tells of."""
    try:
        return Node(**json.loads(read_inside(file, most=SMALL)))
    except (OSError, ValueError, TypeError):
        return None


def last_node() -> Node | None:
    """What was started here last, whether it lives or not."""
    return _noted(note_file())


def other_notes() -> list[Node]:
    """What machines that share the folder have started last."""
    files = [file for file in cluster_home().glob("node-*.json") if file != note_file()]
    return [node for node in map(_noted, files) if node is not None]


def read_node() -> Node | None:
    """What has been started here and lives, if anything."""
    node = last_node()
    return node if node is not None and node.lives else None


@contextmanager
def alone() -> Iterator[None]:
    """While entered, no other command starts or stops a node here; may be entered again within.

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
    """End what `cluster start` has started here; returns what that was.

    Args:
        folder: of the node, to leave another one alone that was started since.

    Raises:
        RuntimeFailure: a process does not end.
    """
    if last_node() is None:
        return None
    with alone():  # who comes second finds that it is done
        node = last_node()
        if node is None or folder not in (None, node.folder):
            return None
        clear_session(Path(node.folder))
        if left := node.processes:
            raise RuntimeFailure(f"processes {left} do not end", "End them by hand, then try again")
        note_file().unlink(missing_ok=True)
    return node
