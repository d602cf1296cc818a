"""Whether the Ray that this process is connected to is alive, and what its errors mean.

Ray itself waits about 15 seconds for its vital processes to come back (see `ray_variables`), and
then ends the process that is connected, without an error of ours.
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from time import monotonic
from typing import Any

import ray

from distsgd.data.system import pause
from distsgd.errors import ChannelClosed, DistsgdError, ProcessLost, RuntimeFailure, ServerLost
from distsgd.on_ray.private import VITAL_PROCESSES, dead_processes, is_head

__all__ = [
    "DEAD",
    "HINT",
    "HeadWatch",
    "answer_of",
    "cause_of",
    "check_ray",
    "classify_failure",
    "why_dead",
]


_EVERY_SECONDS = 1.0
_CONNECT_SECONDS = 0.5
_POLL_SECONDS = 0.25
_PATIENCE_SECONDS = 8.0
"""Long enough for a short loss of the network, and well before Ray ends the process."""

_REFUSED_SECONDS = 2.0
"""The machine answers, but no head listens: no loss of the network."""


class HeadWatch:
    """Tests once a second whether the head of a cluster accepts connections.

    Args:
        address: HOST:PORT of the head.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._looked = monotonic()
        self._silent_since: float | None = None

    def look(self) -> None:
        """Connect, unless that was done within the last second.

        Raises:
            RuntimeFailure: the head has not answered for some seconds.
        """
        if monotonic() > self._looked + _EVERY_SECONDS:
            self._connect()

    def wait(self) -> None:
        """Wait until the head answers.

        Raises:
            RuntimeFailure: see `look`.
        """
        while not self._connect():
            pause(_POLL_SECONDS)

    def _connect(self) -> bool:
        host, _, port = self.address.rpartition(":")
        self._looked = now = monotonic()
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except OSError as error:
            self._silent_since = self._silent_since or now
            refused = isinstance(error, ConnectionRefusedError)
            if now > self._silent_since + (_REFUSED_SECONDS if refused else _PATIENCE_SECONDS):
                raise RuntimeFailure(
                    f"the head of the cluster at {self.address} no longer answers: "
                    f"{error.strerror or error}",
                    "Restart it; `distsgd resume` continues from the last update",
                ) from None
            return False
        self._silent_since = None
        return True


_watch: HeadWatch | None = None


def check_ray(*, surely: bool = False) -> None:
    """Check that Ray's vital processes are alive: those of our session, or of a cluster's head.

    Args:
        surely: wait until the head answers. Needed before calls of Ray that hang without it.

    Raises:
        RuntimeFailure: one of them has died, or the head does not answer.
    """
    for name in sorted(dead_processes() & VITAL_PROCESSES):
        raise RuntimeFailure(
            f"a process of Ray died: {name}",
            "Look for a lack of memory; `distsgd resume` continues from the last update",
        )
    if not is_head():
        head = _watched(str(ray.get_runtime_context().gcs_address))
        (head.wait if surely else head.look)()


def _watched(address: str) -> HeadWatch:
    global _watch
    if _watch is None or _watch.address != address:
        _watch = HeadWatch(address)
    return _watch


_ANSWER_POLL_SECONDS = 0.25
HINT = "Look for a lack of memory; `distsgd resume` continues from the last update"


DEAD = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
"""Errors of a call to an actor that has died, or that Ray has ended to free memory."""

_USED = re.compile(r"was (\S+ used / \S+ limit)")


def why_dead(error: Exception) -> str:
    """Why an actor has died, in one clause."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        used = _USED.search(str(error))
        return "Ray ended it, as its machine ran low on memory" + (f": {used[1]}" if used else "")
    return (str(error).strip() or "it died").splitlines()[0].rstrip(".")


def cause_of(error: Any) -> Exception:
    """Our own error within Ray's, or Ray's if there is none."""
    return error.cause if isinstance(error.cause, DistsgdError) else error


def server_lost(error: Exception) -> ServerLost:
    """The error for a server that has died."""
    return ServerLost(f"a parameter server died: {why_dead(error)}", HINT)


def answer_of(references: Any) -> Any:
    """The results of calls to servers, one or a list; waits while Ray is alive.

    Raises:
        ServerLost: one of them has died.
        RuntimeFailure: Ray has.
        DistsgdError: an error that one of them raised.
    """
    try:
        while True:
            check_ray()
            with suppress(ray.exceptions.GetTimeoutError):
                return ray.get(references, timeout=_ANSWER_POLL_SECONDS)
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from error
    except DEAD as error:
        raise server_lost(error) from error


def classify_failure(error: Exception) -> Exception:
    """The error for the user: when Ray itself has died, everything else is a consequence."""
    try:
        check_ray(surely=True)
    except RuntimeFailure as found:
        return found
    if isinstance(error, ChannelClosed):
        return ServerLost(f"a parameter server can no longer be reached: {error.problem}", HINT)
    if isinstance(error, RuntimeFailure | ProcessLost):
        return error
    return RuntimeFailure(f"Ray can no longer be reached: {error}".rstrip("."), HINT)
