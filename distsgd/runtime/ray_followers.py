"""Followers of the coordinator as actors, and how workers and the driver reach them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from threadpoolctl import threadpool_limits

from distsgd.core.arrays import Floats
from distsgd.core.messages import Applied, Push
from distsgd.errors import ChannelClosed
from distsgd.runtime.job import Job, Snapshot

__all__ = ["FollowerProcess", "RayRangePort", "merged"]


class FollowerProcess:
    """What runs in a follower's process. Made remote in `ray_runtime` alone."""

    def __init__(self, job: Job, start: Snapshot, number: int) -> None:
        threadpool_limits(1)
        self._server = job.follower(start, number)
        self._lock = threading.Lock()

    def put(self, push: Push) -> None:
        """See `RangeServer.put`."""
        with self._lock:
            self._server.put(push)

    def pull(self, version: int, updates: Sequence[Applied]) -> Floats:
        """Go on as far as the updates lead; this range of W at a version."""
        with self._lock, np.errstate(all="ignore"):
            self._server.advance(updates)
            return self._server.weights_at(version).copy()

    def snapshot(
        self, version: int, updates: Sequence[Applied]
    ) -> tuple[Floats, dict[str, Floats]]:
        """See `RangeServer.snapshot`."""
        with self._lock, np.errstate(all="ignore"):
            self._server.advance(updates)
            return self._server.snapshot(version)


class RayRangePort:
    """See `distsgd.channel.sharded.RangePort`.

    Args:
        follower: handle of the follower's actor.
    """

    def __init__(self, follower: Any) -> None:
        self._follower = follower

    def put(self, push: Push) -> Callable[[], None]:
        """See `RangePort.put`."""
        return self._later(self._follower.put.remote(push))

    def pull(self, version: int, updates: Sequence[Applied]) -> Callable[[], Floats]:
        """See `RangePort.pull`."""
        return self._later(self._follower.pull.remote(version, updates))

    def _later(self, reference: Any) -> Callable[[], Any]:
        def wait() -> Any:
            try:
                return ray.get(reference)
            except ray.exceptions.RayActorError:
                raise ChannelClosed("a parameter server has gone") from None

        return wait


def merged(own: Snapshot, followers: Sequence[Any], updates: Sequence[Applied]) -> Snapshot:
    """A snapshot of the whole W from that of the coordinator and those of the followers."""
    if not followers:
        return own
    found = ray.get([follower.snapshot.remote(own.version, updates) for follower in followers])
    weights = np.concatenate([own.weights, *(part for part, _ in found)])
    state = {
        name: np.concatenate([array, *(part[name] for _, part in found)])
        for name, array in own.state.items()
    }
    return Snapshot(own.version, weights, state)
