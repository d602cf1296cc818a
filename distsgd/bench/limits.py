"""How fast two workers can be on this machine: the limit for every server of distsgd.

"independent": two training loops at the same time that share nothing. "server": the workers and
the shared memory of distsgd, with a server that only adds, applies and answers. It keeps no leases,
checks nothing, locks nothing, and loses everything if a worker dies.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.queues import Queue
from time import perf_counter
from typing import Any

from distsgd.bench.processes import WARM_UP, Measured, Task, rate, serve, task_from_arguments
from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.messages import Lease, Message, Push
from distsgd.core.reduction_tree import shares
from distsgd.data.dataset import open_dataset
from distsgd.data.system import pause
from distsgd.engine.blas import best_products, one_blas_thread
from distsgd.engine.job import Job
from distsgd.engine.worker import Worker, work
from distsgd.errors import ChannelClosed, RuntimeFailure
from distsgd.transport.base import Answer, Reply
from distsgd.transport.connections import SharedMemoryChannel
from distsgd.transport.framing import Shape
from distsgd.transport.port import Address, Port

__all__ = ["LeastServer"]

_WORKERS = 2
_SWITCH_SECONDS = 0.0005
_PATIENCE = 30.0


class LeastServer:
    """The arithmetic of `bsp` for workers that never fail; see `distsgd.transport.base.ServerPort`.

    Args:
        job: what is trained.
        workers: number of workers, at most the slots of a minibatch.

    Attributes:
        images: images processed so far.
    """

    def __init__(self, job: Job, workers: int) -> None:
        first = job.architecture.initial(0, 1e-4, job.dtype)
        self._updater = job.replica(first)
        self._plan, self._parts = job.plan, shares(job.plan.most_slots, workers)
        self._givers: dict[int, Callable[[Reply | None], None]] = {}
        self._messages: dict[int, Message | None] = {}
        self._step, self.images = 0, 0

    @contextmanager
    def attached(self, worker: int, give: Callable[[Reply | None], None]) -> Iterator[None]:
        """See `ServerPort.attached`."""
        self._givers[worker] = give
        yield

    def arrived(self, worker: int, incarnation: int) -> None:
        """Ignored."""

    def lost(self, worker: int, incarnation: int) -> None:
        """Ignored: a worker that dies ends the measurement."""

    bell: int | None = None

    def rung(self) -> None:
        """Ignored: there are no teams."""

    def refused(self, where: str) -> None:
        """Ignored: no other peer connects."""

    def exchange(self, worker: int, message: Message | None, size: int) -> Answer | None:
        """Not supported: all workers use shared memory."""
        raise ChannelClosed("only shared memory is measured")

    def submit(self, worker: int, message: Message | None, size: int) -> None:
        """Once all workers have answered, add, apply, and send W to all."""
        self._messages[worker] = message
        if len(self._messages) < len(self._parts):
            return
        pushes = [self._messages[worker] for worker in sorted(self._messages)]
        rows = [push.gradients[0] for push in pushes if isinstance(push, Push)]
        if rows:
            total = rows[0]
            for row in rows[1:]:
                total += row
            self._updater.apply(total, self._plan.batch_size, self._step)
            self.images += self._plan.batch_size
            self._step += 1
            if self._plan.ends_epoch(self._step):  # its last minibatch may be short
                self._step += 1
        self._messages.clear()
        for number, part in enumerate(self._parts):
            lease = Lease(self._step, *part, self._updater.version)
            self._givers[number]((lease, self._updater.weights))


def _job(task: Task, batch: int) -> Job:
    config = TrainConfig(
        dataset=task.dataset, workers=_WORKERS, batch_size=batch, epochs=100_000, optimizer="sgd"
    )
    return make_job(config, open_dataset(config.dataset), best_products())


def _shape(job: Job) -> Shape:
    slots = job.plan.most_slots
    return Shape(job.parameters, job.dtype, slots, slots, job.parameters)


def _work(job: Job, number: int, address: Address) -> None:
    """Run as a process: one of the workers."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    with one_blas_thread(), suppress(ChannelClosed):
        work(Worker(job), SharedMemoryChannel(address, number, _shape(job)))


def _with_server(task: Task, batch: int) -> Measured:
    job = _job(task, batch)
    server = LeastServer(job, _WORKERS)
    everything = slice(0, job.parameters)
    port = Port(server, _shape(job), partial(job.decode, part=everything))
    spawn = multiprocessing.get_context("spawn")
    workers = [
        spawn.Process(target=_work, args=(job, number, port.address), daemon=True)
        for number in range(_WORKERS)
    ]
    for worker in workers:
        worker.start()
    try:
        _until(lambda: server.images > 0)
        pause(WARM_UP)
        images, began = server.images, perf_counter()
        pause(task.seconds)
        return Measured((server.images - images) / (perf_counter() - began), {"channel": "shm"})
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
        port.close()


def _until(reached: Callable[[], bool]) -> None:
    until = perf_counter() + _PATIENCE
    while not reached():
        if perf_counter() > until:
            raise RuntimeFailure("the workers have not started")
        pause(0.01)


def _loop(job: Job, seconds: float, barrier: Any, rates: Queue[float]) -> None:
    """Run as a process: compute and apply minibatches alone."""
    with one_blas_thread():
        worker, plan, step = Worker(job), job.plan, 0
        first = job.architecture.initial(0, 1e-4, job.dtype)
        replica, slots = job.replica(first), job.plan.most_slots

        def one_step() -> int:
            nonlocal step
            if plan.ends_epoch(step):
                step += 1
            push = worker.answer(Lease(step, 0, slots, 0), replica.weights)
            replica.apply(push.gradients[0], plan.batch_size, step)
            step += 1
            return plan.batch_size

        barrier.wait(_PATIENCE)
        rates.put(rate(one_step, seconds))


def _independent(task: Task, batch: int) -> Measured:
    job, spawn = _job(task, batch), multiprocessing.get_context("spawn")
    barrier, rates = spawn.Barrier(_WORKERS), spawn.Queue()
    loops = [
        spawn.Process(target=_loop, args=(job, task.seconds, barrier, rates), daemon=True)
        for _ in range(_WORKERS)
    ]
    for loop in loops:
        loop.start()
    total = sum(rates.get(timeout=_PATIENCE + task.seconds) for _ in loops)
    for loop in loops:
        loop.join()
    return Measured(total, {})


def _measure(task: Task, run: dict[str, Any]) -> Measured:
    measure = {"independent": _independent, "server": _with_server}[run["limit"]]
    with one_blas_thread():
        return measure(task, run["batch_size"])


if __name__ == "__main__":
    sys.setswitchinterval(_SWITCH_SECONDS)
    serve(task_from_arguments(), _measure)
