"""A channel within one process: a worker and the server call each other directly."""

from __future__ import annotations

from distsgd.core.arrays import Floats
from distsgd.core.messages import Push
from distsgd.transport.base import ServerPort, Work

__all__ = ["InProcessChannel"]


class InProcessChannel:
    """See `distsgd.transport.base.Channel`.

    Args:
        server: the other end.
        worker: number of the worker on this end.
    """

    name = "in-process"
    buffer: Floats | None = None

    def __init__(self, server: ServerPort, worker: int) -> None:
        self._server, self._worker = server, worker
        self._push: Push | None = None

    def send(self, push: Push | None) -> None:
        """See `Channel.send`."""
        self._push = push

    def receive(self) -> Work | None:
        """See `Channel.receive`."""
        push = self._push
        return self._server.exchange(self._worker, push, push.size if push else 0)
