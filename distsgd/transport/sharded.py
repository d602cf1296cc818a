"""A worker's connections to several servers, each of which holds a range of W."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.messages import REPORT, Lease, Push
from distsgd.core.optim.compression import Codec
from distsgd.errors import ChannelClosed
from distsgd.transport.base import Channel, Work

__all__ = ["ShardedChannel"]


class ShardedChannel:
    """See `distsgd.transport.base.Channel`.

    The followers are told first: what the coordinator decides about is then there, or on its way.

    Args:
        channels: to the coordinator, and to the other servers in the order of their ranges.
        ranges: the ranges of flat W.
        codec: what gradients are encoded with, if they are.
    """

    buffer: Floats | None = None

    def __init__(
        self, channels: Sequence[Channel], ranges: Sequence[slice], codec: Codec | None
    ) -> None:
        self.name = channels[0].name
        self._channels, self._ranges, self._codec = channels, ranges, codec

    def send(self, push: Push | None) -> None:
        """See `Channel.send`."""
        coordinator, *followers = self._channels
        if push is not None and push.lease.step == REPORT:
            coordinator.send(push)
            return
        own, *others = self._ranges
        for channel, part in zip(followers, others, strict=True):
            channel.send(None if push is None else self._cut(push, part))
        coordinator.send(None if push is None else self._cut(push, own))

    def _cut(self, push: Push, part: slice) -> Push:
        """One server's range of a push."""
        gradients = np.ascontiguousarray(push.gradients[:, part])
        encoded = push.encoded
        if encoded is not None and self._codec is not None:
            encoded = self._codec.cut(encoded, part)
        return push._replace(gradients=gradients, encoded=encoded)

    def receive(self) -> Work | None:
        """See `Channel.receive`."""
        coordinator, *followers = self._channels
        work = coordinator.receive()
        if work is not None and work[0].step == REPORT:
            return work  # the coordinator's own question; the others have nothing to say
        if work is None:
            for channel in followers:
                channel.receive()
            return None
        rest = [self._part(channel, work[0]) for channel in followers]
        return work[0], np.concatenate([work[1], *rest])

    def _part(self, channel: Channel, lease: Lease) -> Floats:
        """A follower's range of W, as of a lease.

        What comes first may be for another lease: that of a worker that died before it came, and
        whose place this one has taken.
        """
        while (part := channel.receive()) is not None:
            if part[0] == lease:
                return part[1]
            channel.send(None)
        raise ChannelClosed("a parameter server has no work where another has")
