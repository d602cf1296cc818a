"""How many workers there is room for, also while nodes join a cluster and leave it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from time import monotonic

__all__ = ["FollowedRoom", "room_for_workers"]

_SECONDS = 1.0


def room_for_workers(servers: int) -> int:
    """Workers that fit beside so many servers, at least 1.

    On the cluster that this process is connected to, those for which there are CPUs, whoever uses
    them now; else one for each core of this machine, as the servers have little to do.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return max(1, int(ray.cluster_resources().get("CPU", 0)) - servers)
    return len(os.sched_getaffinity(0))


class FollowedRoom:
    """How many workers a run is to have: what the user says, until then what there is room for.

    Args:
        said: what the user wants, if there is new word.
        servers: of the run.
        follow: False for what the user says alone.
    """

    def __init__(self, said: Callable[[], int | None], servers: int, follow: bool) -> None:
        self._said, self._servers, self._follow = said, servers, follow
        self._next = 0.0

    def __call__(self) -> int | None:
        """How many, if that may have changed; to be asked within a session of Ray."""
        if (said := self._said()) is not None:
            self._follow = False
            return said
        now = monotonic()
        if not self._follow or now < self._next:
            return None
        self._next = now + _SECONDS
        return room_for_workers(self._servers)
