"""A worker's connections to several servers, each of which holds a range of W."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distsgd.channel.base import Channel, Work
from distsgd.core.arrays import Floats
from distsgd.core.compression import Codec
from distsgd.core.messages import REPORT, Push
from distsgd.errors import ChannelClosed

__all__ = ["ShardedChannel"]


class ShardedChannel:
    """See `distsgd.channel.base.Channel`.

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
        rest = [channel.receive() for channel in followers]
        if work is None:
            return None
        if any(part is not None and part[0] != work[0] for part in rest):
            raise ChannelClosed("a server has given what was meant for another worker")
        return work[0], np.concatenate([work[1], *(part[1] for part in rest if part is not None)])
