"""A parameter server that many threads may call: one lock around the state machine."""

from __future__ import annotations

import threading
from collections import deque
from time import perf_counter

import numpy as np

from distsgd.channel.base import Work
from distsgd.core.messages import Applied, Decision, Dismiss, Grant, Push
from distsgd.runtime.events import Ended, Event, Recorder, Stopwatch
from distsgd.runtime.job import Job, Snapshot

__all__ = ["ServerHost"]


class ServerHost:
    """Carries out the server's decisions: answers workers, keeps events for the driver.

    Args:
        job: what is trained.
        start: where it begins.
        workers: how many workers are expected.
    """

    def __init__(self, job: Job, start: Snapshot, workers: int) -> None:
        self._server = job.coordinator(start)
        self._watch = Stopwatch()
        self._recorder = Recorder(job, self._server, self._watch.seconds)
        self._changed = threading.Condition()
        self._answers: dict[int, Work | None] = {}
        self._events: deque[Event] = deque()
        self._updates: list[Applied] | None = [] if job.servers > 1 else None
        self._over = False
        self._failure: Exception | None = None
        for worker in range(workers):
            self._carry_out(self._server.joined(worker))

    def exchange(self, worker: int, push: Push | None) -> Work | None:
        """A worker pushes and pulls; see `distsgd.channel.base.Channel.exchange`."""
        try:
            return self._exchange(worker, push)
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            raise

    def _exchange(self, worker: int, push: Push | None) -> Work | None:
        with self._changed:
            self._watch.run()
            statistics = self._recorder.statistics
            if push is not None:
                statistics.bytes_pushed += push.size
                with np.errstate(all="ignore"):
                    self._carry_out(self._server.push(worker, push))
            self._carry_out(self._server.pull(worker))
            asked = perf_counter()
            self._changed.wait_for(lambda: worker in self._answers)
            statistics.waited(worker, perf_counter() - asked)
            return self._answers.pop(worker)

    def events(self, timeout: float) -> list[Event]:
        """What has happened since the last call; waits up to ``timeout`` seconds for it.

        Raises:
            Exception: what went wrong in an exchange, for the driver to see.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._failure, timeout)
            if self._failure is not None:
                raise self._failure
            events = list(self._events)
            self._events.clear()
            return events

    def updates(self, since: int) -> list[Applied]:
        """Updates from a version on, for the followers."""
        with self._changed:
            return (self._updates or [])[since:]

    def lost(self, worker: int) -> None:
        """A worker has gone; its slots go to the others."""
        with self._changed:
            self._carry_out(self._server.lost(worker))

    def stop(self) -> None:
        """Hand out no more work; the last event follows."""
        with self._changed:
            self._carry_out(self._server.stop())
            self._end()

    def _end(self, event: Ended | None = None) -> None:
        if not self._over:
            self._over = True
            self._watch.pause()
            self._events.append(event or self._recorder.ended())
            self._changed.notify_all()

    def _carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Grant):
                self._answers[decision.worker] = (decision.lease, self._server.weights.copy())
            elif isinstance(decision, Applied) and self._updates is not None:
                self._updates.append(decision)
            elif isinstance(decision, Dismiss):
                self._answers[decision.worker] = None
            for event in self._recorder.record(decision):
                if isinstance(event, Ended):
                    self._end(event)
                else:
                    self._events.append(event)
        if decisions:
            self._changed.notify_all()
