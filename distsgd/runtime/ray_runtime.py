"""Training on Ray: one server actor, N worker actors, and a driver off the path of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from distsgd.errors import ChannelClosed, DistsgdError, RuntimeFailure
from distsgd.runtime.events import Connected, Ended, EpochEnded, Event
from distsgd.runtime.job import Job, Snapshot
from distsgd.runtime.ray_processes import FollowerProcess, ServerProcess, WorkerProcess
from distsgd.runtime.ray_session import check_ray, ray_session
from distsgd.runtime.trace import Track

__all__ = ["train_on_ray"]

_POLL_SECONDS = 0.25
_FOLLOWER = -1
_TRACK_SECONDS = 30.0


def _start_followers(job: Job, start: Snapshot, workers: int) -> list[Any]:
    return [
        ray.remote(FollowerProcess)
        .options(num_cpus=1, max_concurrency=2 * workers + 4)
        .remote(job, start, number)
        for number in range(1, job.servers)
    ]


def _start(job: Job, start: Snapshot, workers: int) -> tuple[Any, list[Any]]:
    server = (
        ray.remote(ServerProcess)
        .options(num_cpus=1, max_concurrency=2 * workers + job.servers + 4)
        .remote(job, start, workers)
    )
    fleet = [
        ray.remote(WorkerProcess).options(num_cpus=1).remote(job, start, number, workers)
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
        channel: "auto" (shared memory on the server's node, else TCP, else actor calls), or one
            of "shm", "tcp", "ray".

    Raises:
        RuntimeFailure: the server, or every worker, has died.
        DistsgdError: what a worker or the server raised, such as a corrupt shard.
    """
    with ray_session(cpus=workers + job.servers):
        server, fleet = _start(job, start, workers)
        followers = _start_followers(job, start, workers)
        try:
            driver = _Driver(server, followers, fleet, channel, job.trace)
            yield from driver.events(should_stop)
        except (OSError, ray.exceptions.RayError, RuntimeFailure) as error:
            raise _cause(error) from error
        finally:
            for actor in (*fleet, *followers, server):
                ray.kill(actor)


class _Driver:
    """Supervises the actors of one training: follows events, notices deaths."""

    def __init__(
        self, server: Any, followers: list[Any], fleet: list[Any], channel: str, trace: bool
    ) -> None:
        self._trace = trace
        self._server, self._fleet, self._channel = server, fleet, channel
        self._followers = followers
        self._running: dict[Any, int] = {}

    def _begin(self) -> Event:
        """Open the data everywhere, connect everyone, and set the workers to work."""
        servers = [self._server, *self._followers]
        addresses = [server.address.remote() for server in servers]
        opened = [actor.open.remote() for actor in self._fleet]
        found = _get(addresses)
        _get(opened)
        contacts = [(server, *at) for server, at in zip(servers, found, strict=True)]
        names = _get([actor.connect.remote(contacts, self._channel) for actor in self._fleet])
        for follower in self._followers:
            self._running[follower.follow.remote(contacts[0], self._channel)] = _FOLLOWER
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
            check_ray()
            done, _ = ray.wait([waiting, *self._running], timeout=_POLL_SECONDS)
            for reference in done:
                if reference != waiting:
                    self._worker_ended(reference)
                    continue
                events = [self._whole(event) for event in _get(reference)]
                if self._trace and events and isinstance(events[-1], Ended):
                    events[-1] = replace(events[-1], tracks=self._tracks())
                yield from events
                if events and isinstance(events[-1], Ended):
                    return
                waiting = self._server.events.remote(_POLL_SECONDS)

    def _whole(self, event: Event) -> Event:
        """The event with the whole of W, where a snapshot has the coordinator's range alone."""
        if not (self._followers and isinstance(event, EpochEnded | Ended)):
            return event
        own = event.snapshot
        found = _get([follower.snapshot.remote(own.version) for follower in self._followers])
        weights = np.concatenate([own.weights, *(part for part, _, _ in found)])
        state = {
            name: np.concatenate([array, *(part[name] for _, part, _ in found)])
            for name, array in own.state.items()
        }
        if isinstance(event, Ended):
            event.statistics.bytes_pushed += sum(received for _, _, received in found)
        return replace(event, snapshot=replace(own, weights=weights, state=state))

    def _tracks(self) -> tuple[Track, ...]:
        """The timelines of all processes that live."""
        actors = [self._server, *self._followers, *self._fleet]
        found = []
        for reference in [actor.track.remote() for actor in actors]:
            try:
                found.append(ray.get(reference, timeout=_TRACK_SECONDS))
            except (ray.exceptions.RayError, TimeoutError):
                continue
        return tuple(found)

    def _worker_ended(self, reference: Any) -> None:
        number = self._running.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise _ours(error) from error
        except ray.exceptions.RayActorError as error:
            if number == _FOLLOWER:
                raise _died(error) from error
            self._server.lost.remote(number)
            if not any(worker != _FOLLOWER for worker in self._running.values()):
                raise RuntimeFailure("every worker has died", _REMEDY) from None


def _get(references: Any) -> Any:
    try:
        while True:
            check_ray()
            with suppress(ray.exceptions.GetTimeoutError):
                return ray.get(references, timeout=_POLL_SECONDS)
    except ray.exceptions.RayTaskError as error:
        raise _ours(error) from error
    except ray.exceptions.RayActorError as error:
        raise _died(error) from error


_REMEDY = "Look for a lack of memory; the run folder holds the last whole checkpoint"


def _cause(error: Exception) -> Exception:
    """What to tell: when Ray itself has died, everything else is a consequence."""
    try:
        check_ray()
    except RuntimeFailure as found:
        return found
    if isinstance(error, RuntimeFailure) and not isinstance(error, ChannelClosed):
        return error
    what = "a parameter server" if isinstance(error, ChannelClosed) else "Ray"
    return RuntimeFailure(f"{what} can no longer be reached: {error}".rstrip("."), _REMEDY)


def _died(error: Exception) -> RuntimeFailure:
    why = str(error).splitlines()[0].rstrip(".")
    return RuntimeFailure(f"a process of the training died: {why}", _REMEDY)


def _ours(error: Any) -> Exception:
    """Our own error inside Ray's, or Ray's if there is none."""
    return error.cause if isinstance(error.cause, DistsgdError) else error
