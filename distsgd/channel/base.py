"""The worker's end of a channel: the one interface that every transport implements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease, Push

__all__ = ["Channel", "Decode", "ServerPort", "Work"]

Work = tuple[Lease, Floats]
"""A lease, and the flat W to compute it at, which the receiver must not write to."""


Decode = Callable[[bytes, int], Floats]
"""Decodes an encoded gradient into so many rows, of which the first has it all."""


class Channel(Protocol):
    """One worker's connection to the parameter server."""

    name: str
    """What the run's output calls this transport."""

    def exchange(self, push: Push | None) -> Work | None:
        """Push the answer to the last lease, if there was one, and pull the next work.

        Blocks until the server has work for this worker.

        Returns:
            the work, or None when training is over.

        Raises:
            ChannelClosed: the server has gone.
        """
        ...


class ServerPort(Protocol):
    """What a transport needs of the server: the other end of `Channel.exchange`."""

    def exchange(self, worker: int, push: Push | None) -> Work | None:
        """See `Channel.exchange`; called from as many threads as there are workers."""
        ...
