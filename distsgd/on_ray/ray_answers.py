"""What actors answer, with our own errors taken out of Ray's."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import ray

from distsgd.errors import ChannelClosed, DistsgdError, RuntimeFailure, ServerLost
from distsgd.on_ray.health import check_ray

__all__ = ["DEAD", "HINT", "answer_of", "cause_of", "server_lost", "what_to_tell", "why_dead"]

_POLL_SECONDS = 0.25
HINT = "Look for a lack of memory; `distsgd resume` goes on from the last update"


DEAD = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
"""What a call of an actor raises that has died, or that Ray has ended to free memory."""

_USED = re.compile(r"was (\S+ used / \S+ limit)")


def why_dead(error: Exception) -> str:
    """Why an actor has died, in one clause."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        used = _USED.search(str(error))
        return "Ray ended it, as its machine ran low on memory" + (f": {used[1]}" if used else "")
    return (str(error).strip() or "it died").splitlines()[0].rstrip(".")


def cause_of(error: Any) -> Exception:
    """Our own error inside Ray's, or Ray's if there is none."""
    return error.cause if isinstance(error.cause, DistsgdError) else error


def server_lost(error: Exception) -> ServerLost:
    """What there is to say of a server that has died."""
    return ServerLost(f"a parameter server died: {why_dead(error)}", HINT)


def answer_of(references: Any) -> Any:
    """What servers answer, one or a list; waits for it as long as Ray lives.

    Raises:
        ServerLost: one of them has died.
        RuntimeFailure: Ray has.
        DistsgdError: what one of them raised.
    """
    try:
        while True:
            check_ray()
            with suppress(ray.exceptions.GetTimeoutError):
                return ray.get(references, timeout=_POLL_SECONDS)
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from error
    except DEAD as error:
        raise server_lost(error) from error


def what_to_tell(error: Exception) -> Exception:
    """The error for the user: when Ray itself has died, everything else is a consequence."""
    try:
        check_ray(surely=True)
    except RuntimeFailure as found:
        return found
    if isinstance(error, ChannelClosed):
        return ServerLost(f"a parameter server can no longer be reached: {error.problem}", HINT)
    if isinstance(error, RuntimeFailure | ServerLost):
        return error
    return RuntimeFailure(f"Ray can no longer be reached: {error}".rstrip("."), HINT)
