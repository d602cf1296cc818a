"""The server of another range of W, which carries out the coordinator's log of decisions."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from time import perf_counter

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.messages import Dismiss, Grant, Message, Push
from distsgd.engine.events import Trace
from distsgd.engine.job import Job, Snapshot
from distsgd.engine.pending_replies import PendingReplies
from distsgd.errors import RuntimeFailure
from distsgd.transport.base import Answer, Reply
from distsgd.transport.framing import Entry

__all__ = ["DecisionLog", "FollowerHost"]


_PATIENCE = 60.0
_log = logging.getLogger("distsgd")


class FollowerHost:
    """Answers each worker with its range of W, at the version of the worker's lease. Thread-safe.

    Args:
        job: what to train.
        start: where to start.
        number: number of the follower, from 1.

    Attributes:
        trace: its timeline.
    """

    def __init__(self, job: Job, start: Snapshot, number: int) -> None:
        self._server = job.follower(start, number)
        self._changed = threading.Condition()
        self._replies = PendingReplies(self._changed)
        self._failure: Exception | None = None
        self._received = 0
        self._dead: dict[int, int] = {}
        self.trace = Trace(job.trace)

    def exchange(self, worker: int, message: Message | None, size: int) -> Answer | None:
        """See `distsgd.transport.base.ServerPort.exchange`."""
        return self._replies.exchange(
            worker, lambda: self.submit(worker, message, size), keep=True, check=self._check
        )

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def submit(self, worker: int, message: Message | None, size: int) -> None:
        """See `distsgd.transport.base.ServerPort.submit`."""
        with self._changed:
            if isinstance(message, Push):
                self.trace.start()
                self._server.put(worker, message)
                self.trace.lap("put")
                self._received += size
                self._changed.notify_all()
            self._replies.ask(worker, perf_counter())

    bell: int | None = None

    def rung(self) -> None:
        """See `distsgd.transport.base.ServerPort.rung`; no team works with a follower."""

    def attached(
        self, worker: int, give: Callable[[Reply | None], None]
    ) -> AbstractContextManager[None]:
        """See `distsgd.transport.base.ServerPort.attached`."""
        return self._replies.attached(worker, give)

    def refused(self, where: str) -> None:
        """See `distsgd.transport.base.ServerPort.refused`; the coordinator tells the driver."""
        _log.warning("refused: a connection from %s without the training's token", where)

    def follow(self, entries: Iterable[Entry]) -> None:
        """Carry out entries of the log, each once the pushes that it needs have arrived.

        Raises:
            RuntimeFailure: they do not arrive.
        """
        for entry in entries:
            with self._changed:
                if not self._changed.wait_for(partial(self._server.ready, entry), _PATIENCE):
                    self._fail(RuntimeFailure("a part of an update has not arrived at its server"))
                self.trace.start()
                with np.errstate(all="ignore"):
                    self._server.follow(entry)
                if isinstance(entry, Grant):
                    self._replies.put(entry.worker, (entry.lease, self._server.weights))
                elif isinstance(entry, Dismiss):
                    self._replies.put(entry.worker, None)
                self.trace.lap(type(entry).__name__.lower())
                self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._changed.notify_all()
        raise error

    def arrived(self, worker: int, incarnation: int) -> None:
        """See `ServerHost.arrived`."""
        self.lost(worker, incarnation - 1)

    def lost(self, worker: int, incarnation: int) -> None:
        """See `ServerHost.lost`; what becomes of its work, the coordinator decides."""
        with self._changed:
            if incarnation > self._dead.get(worker, 0):
                self._dead[worker] = incarnation
                self._replies.gone(worker, keep=True)

    def snapshot(self, version: int, floor: int) -> tuple[Floats, dict[str, Floats], int]:
        """W and the optimiser's state at a version that is kept, and the bytes received so far.

        Waits for the version. Versions below ``floor`` are dropped.
        """
        with self._changed:
            while (found := self._server.kept(version, floor)) is None:
                if not self._changed.wait(_PATIENCE):
                    self._fail(RuntimeFailure("a parameter server does not keep up"))
            return *found, self._received


class DecisionLog:
    """The coordinator's decisions, kept until every follower has read them.

    Args:
        readers: number of followers.
    """

    def __init__(self, readers: int) -> None:
        self._entries: deque[Entry] = deque()
        self._first = 0
        self._taken = [0] * readers

    def add(self, entries: Iterable[Entry]) -> None:
        """Append entries; without readers, none are kept."""
        if self._taken:
            self._entries.extend(entries)

    def news(self, reader: int) -> bool:
        """Whether a reader has entries to read."""
        return self._taken[reader] < self._first + len(self._entries)

    def take(self, reader: int) -> list[Entry]:
        """The entries that a reader has not read yet."""
        skip = self._taken[reader] - self._first
        found = [entry for number, entry in enumerate(self._entries) if number >= skip]
        self._taken[reader] += len(found)
        while self._first < min(self._taken):
            self._entries.popleft()
            self._first += 1
        return found
