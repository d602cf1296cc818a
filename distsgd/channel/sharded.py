"""A worker's connection to several servers: the coordinator's channel, and the followers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from distsgd.channel.base import Channel, Work
from distsgd.core.arrays import Floats
from distsgd.core.messages import Applied, Push

__all__ = ["RangePort", "ShardedChannel"]


class RangePort(Protocol):
    """A follower, as a worker sees it."""

    def put(self, push: Push) -> Callable[[], None]:
        """Send its range of a push; the result waits until it is there."""
        ...

    def pull(self, version: int, updates: Sequence[Applied]) -> Callable[[], Floats]:
        """Ask for its range of W at a version; the result waits for it."""
        ...


class ShardedChannel:
    """See `distsgd.channel.base.Channel`.

    Args:
        coordinator: channel to the first server.
        followers: the other servers, in the order of their ranges.
        ranges: the ranges of flat W.
        updates: asks the coordinator for its updates from a version on.
    """

    def __init__(
        self,
        coordinator: Channel,
        followers: Sequence[RangePort],
        ranges: Sequence[slice],
        updates: Callable[[int], Sequence[Applied]],
    ) -> None:
        self.name = coordinator.name
        self._coordinator, self._followers, self._ranges = coordinator, followers, ranges
        self._updates, self._known = updates, 0

    def exchange(self, push: Push | None) -> Work | None:
        """See `Channel.exchange`."""
        own, *others = self._ranges
        if push is not None:
            there = [
                follower.put(replace(push, gradients=np.ascontiguousarray(push.gradients[:, part])))
                for follower, part in zip(self._followers, others, strict=True)
            ]
            for wait in there:
                wait()
            push = replace(push, gradients=np.ascontiguousarray(push.gradients[:, own]))
        work = self._coordinator.exchange(push)
        if work is None:
            return None
        lease, first = work
        news = self._updates(self._known)
        self._known += len(news)
        parts = [follower.pull(lease.version, news) for follower in self._followers]
        return lease, np.concatenate([first, *(wait() for wait in parts)])
