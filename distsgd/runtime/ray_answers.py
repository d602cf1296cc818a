"""What actors answer, with our own errors taken out of Ray's."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray

from distsgd.errors import ChannelClosed, DistsgdError, RuntimeFailure, ServerLost
from distsgd.runtime.ray_health import check_ray

__all__ = ["HINT", "answer_of", "cause_of", "server_lost", "what_to_tell"]

_POLL_SECONDS = 0.25
HINT = "Look for a lack of memory; `distsgd resume` goes on from the last update"


def cause_of(error: Any) -> Exception:
    """Our own error inside Ray's, or Ray's if there is none."""
    return error.cause if isinstance(error.cause, DistsgdError) else error


def server_lost(error: Exception) -> ServerLost:
    """What there is to say of a server that has died."""
    why = str(error).splitlines()[0].rstrip(".")
    return ServerLost(f"a parameter server died: {why}", HINT)


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
    except ray.exceptions.RayActorError as error:
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
