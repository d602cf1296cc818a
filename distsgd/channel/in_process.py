"""A channel within one process: plain calls. The twin of the others, for tests and threads."""

from __future__ import annotations

from distsgd.channel.base import ServerPort, Work
from distsgd.core.messages import Push

__all__ = ["InProcessChannel"]


class InProcessChannel:
    """See `distsgd.channel.base.Channel`.

    Args:
        server: the port to call.
        worker: number of the worker on this end.
    """

    name = "in-process"

    def __init__(self, server: ServerPort, worker: int) -> None:
        self._server, self._worker = server, worker

    def exchange(self, push: Push | None) -> Work | None:
        """See `Channel.exchange`."""
        return self._server.exchange(self._worker, push)
