"""Training in one process, without Ray: one worker that answers every lease at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from distsgd.core.messages import Decision, Dismiss, Grant
from distsgd.runtime.events import Ended, Event, Recorder, Stopwatch, Witnessed
from distsgd.runtime.job import Job, Snapshot
from distsgd.runtime.trace import Track
from distsgd.runtime.worker import Worker

__all__ = ["train_inline"]

_WORKER = 0


def train_inline(job: Job, start: Snapshot, should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Train in this process, yielding events; time spent by the caller is not counted.

    Args:
        job: what to train.
        start: where to begin.
        should_stop: asked after every update.
    """
    worker = Worker(job, job.feedback(start, _WORKER, 1))
    server, watch = job.server(start), Stopwatch()
    recorder = Recorder(job, server, watch.seconds, worker.left_over)

    def tracks() -> tuple[Track, ...]:
        return (worker.trace.track("this process"),) if job.trace else ()

    decisions: list[Decision] = server.pull(_WORKER)
    watch.run()
    while decisions:
        following: list[Decision] = []
        for decision in decisions:
            if isinstance(decision, Grant):
                with np.errstate(all="ignore"):
                    worker.trace.start()
                    push = worker.answer((decision.lease, server.weights))
                    recorder.statistics.bytes_pushed += push.size
                    following += server.push(_WORKER, push)
                    worker.trace.lap("update")
                if should_stop():
                    following += server.stop()
                following += server.pull(_WORKER)
            elif isinstance(decision, Dismiss) and not server.finished:
                yield replace(recorder.ended(), tracks=tracks())
            for event in recorder.record(decision):
                watch.pause()
                if isinstance(event, Ended):
                    yield replace(event, tracks=tracks())
                    return
                yield event
                if isinstance(event, Witnessed) and server.witness is not None:
                    server.witness.delivered(1)
                watch.run()
        decisions = following
