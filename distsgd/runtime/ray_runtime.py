"""Training on Ray: one server actor, N worker actors, and a driver off the path of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ray
from threadpoolctl import threadpool_limits

from distsgd.channel.ray_calls import RayChannel, RayPort
from distsgd.errors import DistsgdError, RuntimeFailure
from distsgd.runtime.events import Ended, Event
from distsgd.runtime.job import Job, Snapshot
from distsgd.runtime.ray_session import ray_session
from distsgd.runtime.server_host import ServerHost
from distsgd.runtime.worker import Worker, work

__all__ = ["train_on_ray"]

_POLL_SECONDS = 0.25


class ServerProcess:
    """What runs in the server's process. Made remote in `_start` alone.

    A call of `exchange` has a fixed number of results, which the caller sets.
    """

    def __init__(self, job: Job, start: Snapshot, workers: int) -> None:
        threadpool_limits(1)
        self._host = ServerHost(job, start, workers)
        self._port = RayPort(self._host, job.vector_bytes)

    def exchange(self, worker: int, meta: Any, *chunks: Any) -> Any:
        """See `distsgd.channel.ray_calls.RayPort.exchange`."""
        return self._port.exchange(worker, meta, *chunks)

    def events(self, timeout: float) -> list[Event]:
        """See `ServerHost.events`."""
        return self._host.events(timeout)

    def lost(self, worker: int) -> None:
        """See `ServerHost.lost`."""
        self._host.lost(worker)

    def stop(self) -> None:
        """See `ServerHost.stop`."""
        self._host.stop()


class WorkerProcess:
    """What runs in a worker's process. Made remote in `_start` alone."""

    def __init__(self, job: Job, number: int) -> None:
        threadpool_limits(1)
        self._job, self._number = job, number

    def open(self) -> None:
        """Open the data. Not done on creation: errors of calls come through, of creation not."""
        self._worker = Worker(self._job)

    def run(self, server: Any) -> int:
        """Work until the server has no more."""
        channel = RayChannel(server, self._number, self._job.vector_bytes)
        return work(self._worker, channel)


def _start(job: Job, start: Snapshot, workers: int) -> tuple[Any, list[Any]]:
    server = (
        ray.remote(ServerProcess)
        .options(num_cpus=1, max_concurrency=workers + 4)
        .remote(job, start, workers)
    )
    fleet = [
        ray.remote(WorkerProcess).options(num_cpus=1).remote(job, number)
        for number in range(workers)
    ]
    return server, fleet


def train_on_ray(
    job: Job, start: Snapshot, workers: int, should_stop: Callable[[], bool]
) -> Iterator[Event]:
    """Train with ``workers`` worker processes, yielding events as they come.

    Args:
        job: what to train.
        start: where to begin.
        workers: number of worker processes, at least 1.
        should_stop: asked several times a second.

    Raises:
        RuntimeFailure: the server, or every worker, has died.
        DistsgdError: what a worker or the server raised, such as a corrupt shard.
    """
    with ray_session(cpus=workers + 1):
        server, fleet = _start(job, start, workers)
        try:
            yield from _Driver(server, fleet).events(should_stop)
        finally:
            for actor in (*fleet, server):
                ray.kill(actor)


class _Driver:
    """Supervises the actors of one training: follows events, notices deaths."""

    def __init__(self, server: Any, fleet: list[Any]) -> None:
        self._server = server
        self._running: dict[Any, int] = {}
        _get([actor.open.remote() for actor in fleet])
        for number, actor in enumerate(fleet):
            self._running[actor.run.remote(server)] = number

    def events(self, should_stop: Callable[[], bool]) -> Iterator[Event]:
        stopping = False
        waiting = self._server.events.remote(_POLL_SECONDS)
        while True:
            if should_stop() and not stopping:
                stopping = True
                self._server.stop.remote()
            done, _ = ray.wait([waiting, *self._running], timeout=_POLL_SECONDS)
            for reference in done:
                if reference != waiting:
                    self._worker_ended(reference)
                    continue
                events = _get(reference)
                yield from events
                if events and isinstance(events[-1], Ended):
                    return
                waiting = self._server.events.remote(_POLL_SECONDS)

    def _worker_ended(self, reference: Any) -> None:
        number = self._running.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise _ours(error) from error
        except ray.exceptions.RayActorError:
            self._server.lost.remote(number)
            if not self._running:
                raise RuntimeFailure(
                    "every worker has died",
                    "Look for a lack of memory; the run folder holds the last whole checkpoint",
                ) from None


def _get(references: Any) -> Any:
    try:
        return ray.get(references)
    except ray.exceptions.RayTaskError as error:
        raise _ours(error) from error
    except ray.exceptions.RayActorError as error:
        raise RuntimeFailure(
            f"a process of the training died: {str(error).splitlines()[0]}",
            "Look for a lack of memory; the run folder holds the last whole checkpoint",
        ) from error


def _ours(error: Any) -> Exception:
    """Our own error inside Ray's, or Ray's if there is none."""
    return error.cause if isinstance(error.cause, DistsgdError) else error
