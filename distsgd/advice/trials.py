"""Short trainings that measure a machine. A process of its own; see `distsgd.bench.processes`.

A fleet here is that of `distsgd train` without Ray: the server in this process, and its workers in
processes that live for all trials. A run of the task has a ``kind``:

    memory      bytes a second that are read
    kernel      seconds of a worker's lease, by ``processes`` at once, of ``slots`` each
    inline      seconds of an update with ``workers=0``
    fleet       seconds of an update by ``workers`` processes over ``channel``
    codec       seconds to encode and to decode a gradient by ``compress``
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import numpy as np

from distsgd.bench.processes import Measured, Task, serve, task_from_arguments
from distsgd.config.jobs import first_weights, make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.messages import Lease
from distsgd.data.dataset import open_dataset
from distsgd.data.split import Split
from distsgd.engine.blas import best_products, keep_one_blas_thread
from distsgd.engine.events import Ended, Progress
from distsgd.engine.inline import train_inline
from distsgd.engine.job import Job, Snapshot
from distsgd.engine.server_host import ServerHost
from distsgd.engine.team_turns import join_team
from distsgd.engine.worker import Worker, dataset_of, work
from distsgd.errors import ChannelClosed, RuntimeFailure
from distsgd.transport.base import Membership
from distsgd.transport.connections import SharedMemoryChannel, TcpChannel
from distsgd.transport.framing import Shape
from distsgd.transport.port import Address, Port

__all__ = ["Trials"]

_EPOCHS = 100_000
_SWITCH_SECONDS, _POLL_SECONDS, _PATIENCE = 0.0005, 0.05, 20.0
_WARM_UP = 0.3
"""Share of the time of a trial that goes before what counts."""

_FLOATS = 2**24
_OWN = ("name", "kind", "slots", "processes", "times")
"""What a run says beside settings of a training."""


class Trials:
    """Measures the runs of a task; has worker processes until it is closed.

    Args:
        task: of this process.
    """

    def __init__(self, task: Task) -> None:
        self._dataset = open_dataset(task.dataset)
        self._name = task.dataset
        self._spawn = multiprocessing.get_context("spawn")
        self._workers: list[Connection] = []

    def measure(self, task: Task, run: dict[str, Any]) -> Measured:
        """Measure one run; see the module."""
        kind, settings = run["kind"], {k: v for k, v in run.items() if k not in _OWN}
        if kind == "memory":
            return Measured(_memory(task.seconds), {})
        job, start = self._job(settings)
        seconds = task.seconds * run.get("times", 1)
        if kind == "codec":
            return _codec(job, task.seconds)
        if kind == "inline":
            return self._inline(job, start, task.seconds)
        if kind == "kernel":
            return self._kernel(job, run["slots"], run["processes"], task.seconds)
        return self._fleet(job, start, settings["workers"], settings["channel"], seconds)

    def close(self) -> None:
        """End the worker processes."""
        for worker in self._workers:
            worker.close()

    def _job(self, settings: dict[str, Any]) -> tuple[Job, Snapshot]:
        config = TrainConfig(dataset=self._name, epochs=_EPOCHS, checkpoint_seconds=0, **settings)
        job = make_job(config, self._dataset, best_products())
        return job, Snapshot(0, first_weights(config, job), {})

    def _processes(self, count: int) -> list[Connection]:
        """The first of the worker processes, started as they are needed."""
        while len(self._workers) < count:
            ours, theirs = self._spawn.Pipe()
            self._spawn.Process(target=_serve_orders, args=(theirs,), daemon=True).start()
            theirs.close()
            self._workers.append(ours)
        return self._workers[:count]

    def _inline(self, job: Job, start: Snapshot, seconds: float) -> Measured:
        window = _Window(seconds)
        with np.errstate(all="ignore"):
            for event in train_inline(job, start, window.over):
                window.see(event)
        return window.measured()

    def _kernel(self, job: Job, slots: int, count: int, seconds: float) -> Measured:
        workers = self._processes(count)
        for worker in workers:
            worker.send(("kernel", job, slots, seconds))
        for worker in workers:
            _answer(worker)  # it is open
        for worker in workers:
            worker.send("go")
        found = [_answer(worker) for worker in workers]
        return Measured(float(np.mean(found)), {})

    def _fleet(
        self, job: Job, start: Snapshot, count: int, channel: str, seconds: float
    ) -> Measured:
        workers = self._processes(count)
        host = ServerHost(job, start, count)
        everything = slice(0, job.parameters)
        port = Port(host, _shape(job), lambda got, rows: job.decode(got, rows, everything))
        try:
            for number, worker in enumerate(workers):
                worker.send(("train", job, start, number, count, port.address, channel))
            for worker in workers:
                _answer(worker)
            for worker in workers:
                worker.send("go")
            window, stopping = _Window(seconds), False
            until, ended = perf_counter() + _PATIENCE + seconds, None
            while ended is None:
                for event in host.events(_POLL_SECONDS):
                    window.see(event)
                    ended = event if isinstance(event, Ended) else ended
                if window.over() and not stopping:
                    stopping = True
                    host.stop()
                if perf_counter() > until:
                    raise RuntimeFailure("a trial did not come to its end")
            for worker in workers:
                _answer(worker)
        finally:
            port.close()
        busy = ended.statistics.busy_seconds / max(1, ended.snapshot.version)
        return window.measured({"busy": busy})


class _Window:
    """Seconds of an update, between two reports of progress: after a warm-up, and the last."""

    def __init__(self, seconds: float) -> None:
        self._from, self._until = _WARM_UP * seconds, (1 + _WARM_UP) * seconds
        self._first: tuple[float, int] | None = None
        self._last = (0.0, 0)

    def see(self, event: object) -> None:
        """Take a report of progress."""
        if isinstance(event, Progress):
            if self._first is None and event.seconds >= self._from:
                self._first = (event.seconds, event.step)
            self._last = (event.seconds, event.step)

    def over(self) -> bool:
        """Whether it has been open for long enough."""
        begun = self._first is not None and self._last[1] > self._first[1]
        return begun and self._last[0] >= self._until

    def measured(self, details: dict[str, Any] | None = None) -> Measured:
        """Seconds of an update."""
        if self._first is None or self._last[1] <= self._first[1]:
            raise RuntimeFailure("a trial was too short")
        spent, steps = (b - a for a, b in zip(self._first, self._last, strict=True))
        return Measured(spent / steps, details or {})


def _memory(seconds: float) -> float:
    """Bytes a second that one process reads from memory."""
    a, b = (np.ones(_FLOATS, np.float32) for _ in range(2))
    best, until = float("inf"), perf_counter() + seconds
    while (began := perf_counter()) < until:
        np.dot(a, b)
        best = min(best, perf_counter() - began)
    return (a.nbytes + b.nbytes) / best


def _codec(job: Job, seconds: float) -> Measured:
    """Seconds to encode a gradient with error feedback, and to decode it."""
    feedback = job.feedback(Snapshot(0, np.zeros(job.parameters, job.dtype), {}), 0, 1)
    assert feedback is not None
    random = np.random.default_rng(0)
    gradient = random.standard_normal(job.parameters).astype(job.dtype)
    seen, row = np.zeros_like(gradient), gradient.copy()
    times: list[tuple[float, float]] = []
    until, payload = perf_counter() + seconds, b""
    while (began := perf_counter()) < until or len(times) < 3:
        np.copyto(row, gradient)
        seen[...] = 0
        payload = bytes(feedback.send(len(times), row, seen))
        encoded = perf_counter()
        job.decode(payload, 1, slice(0, job.parameters))
        times.append((encoded - began, perf_counter() - encoded))
    encode, decode = np.median(np.array(times), axis=0)
    return Measured(float(encode), {"decode": float(decode), "bytes": len(payload)})


def _answer(worker: Connection) -> Any:
    if not worker.poll(_PATIENCE):
        raise RuntimeFailure("a worker of a trial does not answer")
    found = worker.recv()
    if isinstance(found, Exception):
        raise found
    return found


def _shape(job: Job) -> Shape:
    slots = job.plan.most_slots
    return Shape(
        job.parameters, job.dtype, slots, job.most_losses, job.parameters, job.policy.halves
    )


def _serve_orders(orders: Connection) -> None:
    """Run as a process: a worker, for one trial after another."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    keep_one_blas_thread()
    split: Split | None = None
    found: object
    with suppress(EOFError, OSError):
        while True:
            name, job, *rest = orders.recv()
            try:
                if job.cache == "uint8":  # one copy in memory serves all trials
                    split = split or dataset_of(job).train.in_memory()
                    job = replace(job, cache="shards")
                found = (_lease_seconds if name == "kernel" else _train)(orders, job, split, *rest)
            except Exception as error:
                found = RuntimeFailure(f"{type(error).__name__}: {error}")
            orders.send(found)


def _lease_seconds(
    orders: Connection, job: Job, split: Split | None, slots: int, seconds: float
) -> float:
    """Seconds of a lease of this many slots, its rows gathered before as in a training."""
    worker = Worker(job, None, split)
    weights = job.architecture.initial(0, 1e-4, job.dtype)
    orders.send("open")
    orders.recv()
    step, times = 0, list[float]()
    until = perf_counter() + (1 + _WARM_UP) * seconds
    with np.errstate(all="ignore"):
        while (began := perf_counter()) < until or not times:
            while job.plan.slots(step) < slots:  # the last minibatch of an epoch
                step += 1
            lease = Lease(step, 0, slots, 0)
            worker.answer(lease, weights)
            worker.get_ready(lease)
            step += 1
            times.append(perf_counter() - began)
    counted = times[int(len(times) * _WARM_UP) :]
    return sum(counted) / len(counted)


def _train(
    orders: Connection, job: Job, split: Split | None, start: Snapshot, number: int, count: int,
    address: Address, channel: str,
) -> int:  # fmt: skip
    worker = Worker(job, job.feedback(start, number, count), split)
    kind = TcpChannel if channel == "tcp" else SharedMemoryChannel
    there = kind(address, number, _shape(job))

    def join(place: Membership) -> int:
        assert there.descriptor is not None
        return join_team(job, worker, place, there.descriptor)

    gc.collect()
    gc.freeze()
    orders.send("open")
    orders.recv()
    try:
        return work(worker, there, join)
    except ChannelClosed:
        return 0
    finally:
        there.close()


def main() -> None:
    """Measure the runs of a task."""
    task = task_from_arguments()
    sys.setswitchinterval(_SWITCH_SECONDS)
    keep_one_blas_thread()
    gc.freeze()
    trials = Trials(task)
    try:
        serve(task, trials.measure)
    finally:
        trials.close()


if __name__ == "__main__":
    main()
