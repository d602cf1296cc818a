"""One connection to Ray per process, shared by its trainings.

Ray keeps its connection, its settings and its output filters in globals of the process. The first
training of a process sets them, the last one restores them.

The processes of a Ray die with the *thread* that started them (Linux: PR_SET_PDEATHSIG). So the
connection is made by the main thread, or by one that lives as long as the connection.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from distsgd.data.system import OWN_THREAD
from distsgd.errors import RuntimeFailure, UsageError
from distsgd.on_ray.capacity import connected_ray
from distsgd.on_ray.init import import_ray, no_auto_init, wait_for_other_threads
from distsgd.on_ray.private import DRIVER_LOG
from distsgd.spelling import spelling

__all__ = ["OWN", "owns_ray", "shared_connection"]

OWN = ""
"""The address of a session of our own: that of no cluster."""


@dataclass
class _Connection:
    """A connection that we have made.

    Attributes:
        address: HOST:PORT of its cluster, or `OWN`.
        opened: the context that holds it open.
        threads: thread id -> number of its trainings that use the connection.
    """

    address: str
    opened: AbstractContextManager[None]
    threads: dict[int, int] = field(default_factory=dict)


_lock = threading.RLock()  # reentrant: garbage collection of a training may leave at any point
_current: _Connection | None = None
_forked = False
_abandoned: list[_Connection] = []


def owns_ray() -> bool:
    """Whether this process is connected to a session of its own, whose CPUs are not counted."""
    connection = _current
    return connection is not None and connection.address == OWN


@contextmanager
def shared_connection(
    address: str, connect: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Connect to Ray; trainings in several threads share the connection.

    A connection that the caller has made is used, and left open.

    Args:
        address: HOST:PORT of a cluster, or `OWN` for the caller's Ray or one of our own.
        connect: makes a context in which this process is connected.

    Raises:
        UsageError: the caller is connected to another cluster.
        RuntimeFailure: another training of this process uses another Ray, or this process was
            forked from one that uses Ray.
    """
    _check_not_forked()
    thread = threading.get_ident()  # another thread may exit the context, by garbage collection
    with _lock:
        connection = _entered(address, connect)
    try:
        with no_auto_init():
            yield
    finally:
        if connection is not None:
            with _lock:
                _leave(connection, thread)


def _entered(
    address: str, connect: Callable[[], AbstractContextManager[None]]
) -> _Connection | None:
    """The connection, counted for this thread; None if it is the caller's."""
    global _current
    thread = threading.get_ident()
    if _current is None:
        wait_for_other_threads()
        if import_ray().is_initialized():
            _check_caller(address)
            return None
        opened = connect() if _in_main_thread() else _in_own_thread(connect)
        opened.__enter__()
        _current = _Connection(address, opened)
    elif thread not in _current.threads and address != _current.address:
        where = f"the cluster at {_current.address}" if _current.address else "a Ray of its own"
        raise RuntimeFailure(
            f"another training of this process uses {where}, and a process has one Ray",
            "Wait until it ends, or train in another process",
        )
    _current.threads[thread] = _current.threads.get(thread, 0) + 1
    return _current


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _in_own_thread(connect: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Connect in a thread of its own, which lives until the context is exited."""
    connected: Future[None] = Future()
    ended: Future[None] = Future()
    leave = threading.Event()

    def hold() -> None:
        try:
            with connect():
                connected.set_result(None)
                leave.wait()
            ended.set_result(None)
        except BaseException as error:
            (ended if connected.done() else connected).set_exception(error)

    threading.Thread(target=hold, name=f"{OWN_THREAD}-ray", daemon=True).start()
    connected.result()
    try:
        yield
    finally:
        leave.set()
        ended.result()


def _leave(connection: _Connection, thread: int) -> None:
    global _current
    if connection is not _current:
        return  # a forked child of the process that made it
    left = connection.threads.pop(thread, 1) - 1
    if left:
        connection.threads[thread] = left
    elif not connection.threads:
        try:
            connection.opened.__exit__(None, None, None)
        finally:
            _current = None


def _check_caller(address: str) -> None:
    import ray

    theirs = str(ray.get_runtime_context().gcs_address)
    if address == OWN or _numeric(address) == _numeric(theirs):
        return
    raise UsageError(
        f"{spelling().given('address', address)}: this process is connected to the Ray at {theirs}",
        "Leave out the address to train there, or call ray.shutdown() first",
    )


def _numeric(address: str) -> str:
    """HOST:PORT with the host resolved, if it can be."""
    host, _, port = address.rpartition(":")
    try:
        return f"{socket.gethostbyname(host)}:{port}"
    except OSError:
        return address


def _check_not_forked() -> None:
    """Raise in a forked child, which lacks Ray's threads: calls there hang, or crash."""
    drivers = _drivers()
    # Where only the child imports this module, no fork has been noted.
    inherited = connected_ray() is not None and os.getpid() not in drivers
    if drivers - {os.getpid()} and (_forked or inherited):
        raise RuntimeFailure(
            "this process was forked from one that uses Ray, and Ray does not survive a fork",
            "Start processes with multiprocessing.get_context('spawn'), or train with workers=0",
        )


def _drivers() -> set[int]:
    """Process ids whose driver logs are open here: ours, or those we were forked from."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            match = DRIVER_LOG.search(str(link.readlink()))
        except OSError:  # the descriptor of this very listing
            continue
        if match:
            found.add(int(match[1]))
    return found


def _note_fork() -> None:
    """In a forked child: forget the connection and the lock, which are the parent's."""
    global _lock, _current, _forked
    _lock, _forked = threading.RLock(), True
    if _current is not None:
        _abandoned.append(_current)  # keeps it from being closed here
        _current = None


os.register_at_fork(after_in_child=_note_fork)
