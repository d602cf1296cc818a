"""Training on Ray: one server actor, N worker actors, and a driver off the path of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ray
from threadpoolctl import threadpool_limits

from distsgd.channel.base import Channel
from distsgd.channel.ray_calls import RayChannel, RayPort
from distsgd.channel.sharded import ShardedChannel
from distsgd.channel.unix_socket import Shape, UnixAddress, UnixSocketChannel, UnixSocketPort
from distsgd.core.messages import Applied
from distsgd.errors import DistsgdError, RuntimeFailure
from distsgd.runtime.events import Connected, Ended, EpochEnded, Event, Updated
from distsgd.runtime.job import Job, Snapshot
from distsgd.runtime.ray_followers import FollowerProcess, RayRangePort, merged
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
        self._port = RayPort(self._host, _own_bytes(job), job.decode)
        self._unix = UnixSocketPort(self._host, _shape(job), self._host.lost, job.decode)

    def address(self) -> tuple[str, UnixAddress]:
        """The node this server is on, and where it listens there."""
        return ray.get_runtime_context().get_node_id(), self._unix.address

    def exchange(self, worker: int, meta: Any, *chunks: Any) -> Any:
        """See `distsgd.channel.ray_calls.RayPort.exchange`."""
        return self._port.exchange(worker, meta, *chunks)

    def updates(self, since: int) -> list[Applied]:
        """See `ServerHost.updates`."""
        return self._host.updates(since)

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

    def connect(
        self, server: Any, followers: list[Any], channel: str, address: tuple[str, UnixAddress]
    ) -> str:
        """Connect to the servers by the named channel, or the best there is; returns its name."""
        self._channel: Channel
        here = ray.get_runtime_context().get_node_id()
        if channel == "unix" or (channel == "auto" and here == address[0]):
            self._channel = UnixSocketChannel(address[1], self._number, _shape(self._job))
        else:
            self._channel = RayChannel(server, self._number, _own_bytes(self._job))
        if followers:
            ports = [RayRangePort(follower) for follower in followers]
            ranges = self._job.ranges()
            self._channel = ShardedChannel(
                self._channel, ports, ranges, lambda since: ray.get(server.updates.remote(since))
            )
        return self._channel.name

    def run(self) -> int:
        """Work until the server has no more."""
        return work(self._worker, self._channel)


def _shape(job: Job) -> Shape:
    slots, own = job.plan.most_slots, job.ranges()[0]
    return Shape(own.stop, job.dtype, slots, slots * job.policy.local_steps)


def _own_bytes(job: Job) -> int:
    """Bytes of the coordinator's range of W."""
    return job.vector_bytes // job.parameters * (job.parameters // job.servers)


def _start_followers(job: Job, start: Snapshot, workers: int) -> list[Any]:
    return [
        ray.remote(FollowerProcess)
        .options(num_cpus=1, max_concurrency=workers + 2)
        .remote(job, start, number)
        for number in range(1, job.servers)
    ]


def _start(job: Job, start: Snapshot, workers: int) -> tuple[Any, list[Any]]:
    server = (
        ray.remote(ServerProcess)
        .options(num_cpus=1, max_concurrency=2 * workers + 4)
        .remote(job, start, workers)
    )
    fleet = [
        ray.remote(WorkerProcess).options(num_cpus=1).remote(job, number)
        for number in range(workers)
    ]
    return server, fleet


def train_on_ray(
    job: Job,
    start: Snapshot,
    workers: int,
    should_stop: Callable[[], bool],
    channel: str = "auto",
) -> Iterator[Event]:
    """Train with ``workers`` worker processes, yielding events as they come.

    Args:
        job: what to train.
        start: where to begin.
        workers: number of worker processes, at least 1.
        should_stop: asked several times a second.
        channel: "auto" (a Unix socket on the server's node, else actor calls), "unix" or "ray".

    Raises:
        RuntimeFailure: the server, or every worker, has died.
        DistsgdError: what a worker or the server raised, such as a corrupt shard.
    """
    with ray_session(cpus=workers + job.servers):
        server, fleet = _start(job, start, workers)
        followers = _start_followers(job, start, workers)
        try:
            yield from _Driver(server, followers, fleet, channel).events(should_stop)
        finally:
            for actor in (*fleet, *followers, server):
                ray.kill(actor)


class _Driver:
    """Supervises the actors of one training: follows events, notices deaths."""

    def __init__(self, server: Any, followers: list[Any], fleet: list[Any], channel: str) -> None:
        self._server, self._fleet, self._channel = server, fleet, channel
        self._followers, self._updates = followers, list[Applied]()
        self._running: dict[Any, int] = {}

    def _begin(self) -> Event:
        """Open the data everywhere, connect everyone, and set the workers to work."""
        address = self._server.address.remote()
        opened = [actor.open.remote() for actor in self._fleet]
        found = _get(address)
        _get(opened)
        names = _get(
            [
                actor.connect.remote(self._server, self._followers, self._channel, found)
                for actor in self._fleet
            ]
        )
        for number, actor in enumerate(self._fleet):
            self._running[actor.run.remote()] = number
        return Connected(tuple(names))

    def events(self, should_stop: Callable[[], bool]) -> Iterator[Event]:
        stopping = False
        yield self._begin()
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
                events = [self._whole(event) for event in _get(reference)]
                yield from events
                if events and isinstance(events[-1], Ended):
                    return
                waiting = self._server.events.remote(_POLL_SECONDS)

    def _whole(self, event: Event) -> Event:
        """The event with the whole of W, where a snapshot has the coordinator's range alone."""
        if not self._followers:
            return event
        if isinstance(event, Updated):
            self._updates.append(event.update)
        elif isinstance(event, EpochEnded | Ended):
            snapshot = merged(event.snapshot, self._followers, self._updates)
            self._updates.clear()
            return replace(event, snapshot=snapshot)
        return event

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
