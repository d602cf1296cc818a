"""Replies to workers: pushed to those that are attached, held for those that call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from distsgd.core.messages import ResidualRequest
from distsgd.engine.fleet_report import COMPUTING, STARTING, WAITING
from distsgd.transport.base import Answer, Membership, Reply, Work

__all__ = ["PendingReplies"]

Give = Callable[[Reply | None], None]


class PendingReplies:
    """Holds a worker's reply until the worker asks for it. Calls are made under one lock.

    Args:
        changed: condition with the lock, notified when a waiting worker has a reply.
        request: the request that a worker gets before any work, if there is one.
    """

    def __init__(
        self,
        changed: threading.Condition,
        request: Callable[[int], ResidualRequest | None] = lambda worker: None,
    ) -> None:
        self._changed, self._request = changed, request
        self._givers: dict[int, Give] = {}
        self._asking: dict[int, float] = {}
        self._work: dict[int, Reply | None] = {}
        self._fetched: dict[int, Reply | None] = {}
        self._calls: dict[int, int] = {}
        self._calling: set[int] = set()
        self.waited: dict[int, float] = {}
        self.answering: dict[int, float] = {}
        self.pushing: dict[int, float] = {}
        self._given: dict[int, float] = {}

    @contextmanager
    def attached(self, worker: int, give: Give) -> Iterator[None]:
        """While entered, a worker's replies are passed to ``give``."""
        with self._changed:
            self._givers[worker] = give
        try:
            yield
        finally:
            with self._changed:
                if self._givers.get(worker) is give:
                    del self._givers[worker]

    def ask(self, worker: int, now: float) -> None:
        """A worker asks for work, at a time of `time.perf_counter`."""
        if (given := self._given.pop(worker, None)) is not None:
            self.answering[worker] = self.answering.get(worker, 0.0) + now - given
        self._asking[worker] = now
        self.flush(worker)

    def pushed(self, worker: int, seconds: float) -> None:
        """Of the time that a worker waits, these seconds were spent on adding what it has sent."""
        self.pushing[worker] = self.pushing.get(worker, 0.0) + seconds

    def state(self, worker: int) -> str:
        """What a worker does now, as far as is known here."""
        if worker in self._asking:
            return WAITING
        return COMPUTING if worker in self._given else STARTING

    def put(self, worker: int, work: Work | Membership | None) -> None:
        """Reply with work, or None to dismiss; W is copied if it cannot be sent now."""
        if worker in self._asking and worker in self._givers and self._request(worker) is None:
            self._give(worker, work)
            return
        if work is None or isinstance(work, Membership):
            self._work[worker] = work
        else:
            self._work[worker] = (work[0], work[1].copy())
        self.flush(worker)

    def waited_inside(self, worker: int, seconds: float, now: float) -> None:
        """A worker has waited for others while it had work; what it has spent until now counts."""
        if (given := self._given.get(worker)) is not None:
            self.answering[worker] = self.answering.get(worker, 0.0) + now - given
            self._given[worker] = now
        self.answering[worker] = self.answering.get(worker, 0.0) - seconds
        self.waited[worker] = self.waited.get(worker, 0.0) + seconds

    def gone(self, worker: int, *, keep: bool = False) -> None:
        """A worker has died: its call ends, and its reply is discarded.

        ``keep`` keeps the reply, see `called`.
        """
        self._asking.pop(worker, None)
        self._given.pop(worker, None)
        if not keep:
            self._work.pop(worker, None)
            self._fetched.pop(worker, None)
            self._calls[worker] = self._calls.get(worker, 0) + 1
            self._calling.discard(worker)
            self._changed.notify_all()

    def flush(self, worker: int) -> None:
        """Send a worker that asks its reply, if there is one."""
        if worker in self._asking:
            request = self._request(worker)
            if request is not None:
                self._give(worker, request)
            elif worker in self._work:
                self._give(worker, self._work.pop(worker))

    def flush_all(self) -> None:
        """`flush` for every worker that asks."""
        for worker in list(self._asking):
            self.flush(worker)

    def exchange(
        self, worker: int, submit: Callable[[], None], *, keep: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Answer | None:  # fmt: skip
        """Make the call of a worker that is not attached, and wait for its reply.

        Takes the lock by itself.

        Args:
            worker: its number.
            submit: takes its message; called without the lock.
            keep: see `called`.
            check: called under the lock before each wait; raises what ends the call.
        """
        with self._changed:
            call = self.called(worker, keep=keep)
        submit()
        with self._changed:
            while (found := self.fetch(worker, call)) is None:
                check()
                self._changed.wait()
        assert not isinstance(found[0], Membership)  # it does not share memory
        return found[0]

    def called(self, worker: int, *, keep: bool = False) -> int:
        """A worker that is not attached starts a call; returns the number of the call.

        A worker makes one call at a time, so the process that made an earlier one is dead, and its
        reply is discarded. ``keep`` keeps it for the next call: at a follower it may be meant for
        the new incarnation, which can reach the coordinator sooner.
        """
        self._calls[worker] = self._calls.get(worker, 0) + 1
        if worker in self._calling:
            self._asking.pop(worker, None)
            if worker in self._fetched:
                work = self._fetched.pop(worker)
                if keep:
                    self._work.setdefault(worker, work)
            self._changed.notify_all()
        self._calling.add(worker)
        return self._calls[worker]

    def fetch(self, worker: int, call: int) -> tuple[Reply | None] | None:
        """The reply to a call, in a tuple; None if there is none yet.

        A call that a later one has replaced gets (None,).
        """
        if self._calls[worker] != call:
            return (None,)
        if worker not in self._fetched:
            return None
        self._calling.discard(worker)
        return (self._fetched.pop(worker),)

    def _give(self, worker: int, work: Reply | None) -> None:
        now = perf_counter()
        self._given[worker] = now
        waited = now - self._asking.pop(worker)
        self.waited[worker] = self.waited.get(worker, 0.0) + waited
        give = self._givers.get(worker)
        if give is None:
            self._fetched[worker] = work
            self._changed.notify_all()
        else:
            give(work)
