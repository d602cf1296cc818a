"""Training in one process, without Ray: one worker that answers every lease at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from distsgd.core.messages import Decision, Dismiss, Grant
from distsgd.core.optim import Residual, Residuals, shared_out
from distsgd.core.server import ParameterServer
from distsgd.data.split import Split
from distsgd.engine.events import Ended, Event, Recorder, Saved, Stopwatch, Track, UpdateSampled
from distsgd.engine.fleet_report import COMPUTING, FleetReport
from distsgd.engine.job import Job, Snapshot
from distsgd.engine.snapshots import TimedSnapshots
from distsgd.engine.worker import Worker
from distsgd.transport.faulty import Deliver, PushFaults, Tally, faulty_push

__all__ = ["train_inline"]

_WORKER = 0


def train_inline(
    job: Job, start: Snapshot, should_stop: Callable[[], bool], split: Split | None = None
) -> Iterator[Event]:
    """Train in this process, yielding events; time spent by the caller is not counted.

    Args:
        job: what to train.
        start: where to start.
        should_stop: asked after every update.
        split: the training examples, if they are open already; None opens the job's dataset.
    """
    worker = Worker(job, job.feedback(start, _WORKER, 1), split)
    server, watch = job.server(start), Stopwatch()
    shares = shared_out(start.residuals or {}, 1)

    def residuals() -> Residuals | None:
        serials = server.residual_serials() if job.has_residuals else {}
        if serials is None or (feedback := worker.feedback) is None:
            return None if serials is None else {}
        found = {n: Residual(serial, feedback.left(serial).copy()) for n, serial in serials.items()}
        return {**shares, **found}

    recorder = Recorder(job, server, watch.seconds, residuals)
    timed = TimedSnapshots(server, job.save_seconds, watch.seconds)

    computing, pushing = 0.0, 0.0

    def report() -> FleetReport:
        spent = {_WORKER: computing}, {_WORKER: pushing}, {_WORKER: pushing}
        return recorder.report(*spent, {_WORKER: COMPUTING})

    def tracks() -> tuple[Track, ...]:
        return (worker.trace.track("this process"),) if job.trace else ()

    deliver: Deliver = server.push
    if job.chaos is not None:
        deliver = faulty_push(
            server.push, PushFaults(job.chaos, _WORKER, Tally(Path(job.tally), _WORKER))
        )
    elif isinstance(server, ParameterServer):
        # Gradients are overwritten when the next lease is answered, not before.
        deliver = partial(server.push, borrow=True)
    decisions: list[Decision] = server.pull(_WORKER)
    if server.finished:  # the run was killed between its last update and its end
        yield replace(recorder.ended(), tracks=tracks())
        return
    watch.run()
    while decisions:
        following: list[Decision] = []
        for decision in decisions:
            if isinstance(decision, Grant):
                with np.errstate(all="ignore"):
                    worker.trace.start()
                    begin = perf_counter()
                    push = worker.answer(decision.lease, server.weights)
                    recorder.statistics.bytes_pushed += push.size
                    answered = perf_counter()
                    following += deliver(_WORKER, push)
                    computing += answered - begin
                    pushing += perf_counter() - answered
                    worker.trace.lap("update")
                if should_stop():
                    following += server.stop()
                following += server.pull(_WORKER)
            elif isinstance(decision, Dismiss):  # stopped, or there was nothing left to do
                yield report()
                yield replace(recorder.ended(), tracks=tracks())
            for event in recorder.record(decision):
                watch.pause()
                if isinstance(event, Ended):
                    yield report()
                    yield replace(event, tracks=tracks())
                    return
                yield event
                if isinstance(event, UpdateSampled) and server.sampler is not None:
                    server.sampler.delivered(1)
                watch.run()
        if timed.due and (found := timed.take()) is not None:
            watch.pause()
            yield Saved(recorder.with_residuals(found))
            watch.run()
        if recorder.report_due:
            watch.pause()
            yield report()
            watch.run()
        decisions = following
