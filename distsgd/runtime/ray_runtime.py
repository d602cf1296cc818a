"""Training on Ray: server actors, worker actors, and a driver off the path of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import ray

from distsgd.errors import ChannelClosed, RuntimeFailure, ServerLost
from distsgd.runtime.events import Connected, Ended, EpochEnded, Event, Notice, Saved, Updated
from distsgd.runtime.job import Job, Snapshot
from distsgd.runtime.ray_fleet import HINT, Fleet, cause_of, server_lost
from distsgd.runtime.ray_havoc import Havoc
from distsgd.runtime.ray_processes import FollowerProcess, ServerProcess, WorkerProcess
from distsgd.runtime.ray_session import check_ray, ray_session
from distsgd.runtime.trace import Track

__all__ = ["train_on_ray"]

_POLL_SECONDS = 0.25
_HAVOC_SECONDS = 0.02  # as long as strikes wait for updates to be told of
_TRACK_SECONDS = 30.0
_SPARE = 20  # calls beside those of the first workers: the driver's, and of workers to come
PATIENCE = 120.0
"""Seconds to wait for a worker when there is none."""


def _start_servers(job: Job, start: Snapshot, workers: int) -> list[Any]:
    """The coordinator and its followers."""
    coordinator = (
        ray.remote(ServerProcess)
        .options(num_cpus=1, max_concurrency=2 * workers + job.servers + _SPARE)
        .remote(job, start, workers)
    )
    followers = [
        ray.remote(FollowerProcess)
        .options(num_cpus=1, max_concurrency=2 * workers + _SPARE)
        .remote(job, start, number)
        for number in range(1, job.servers)
    ]
    return [coordinator, *followers]


def train_on_ray(
    job: Job,
    start: Snapshot,
    workers: int,
    should_stop: Callable[[], bool],
    channel: str = "auto",
    wanted: Callable[[], int | None] = lambda: None,
    havoc: Havoc | None = None,
) -> Iterator[Event]:
    """Train with ``workers`` worker processes, yielding events as they come.

    A worker that dies is replaced, and its slots go to the others at once.

    Args:
        job: what to train.
        start: where to begin.
        workers: number of worker processes, at least 1.
        should_stop: asked several times a second.
        channel: "auto" (shared memory on the server's node, else TCP, else actor calls), or one
            of "shm", "tcp", "ray".
        wanted: asked several times a second for how many workers there are to be, if that has
            changed.
        havoc: kills and stops processes on purpose.

    Raises:
        ServerLost: a server has died; training can go on from its last update.
        RuntimeFailure: workers die again and again, or none has come for long.
        DistsgdError: what a worker or the server raised, such as a corrupt shard.
    """
    with ray_session(cpus=workers + job.servers):
        driver = _Driver(job, start, workers, channel, havoc)
        try:
            yield from driver.events(should_stop, wanted)
        except (OSError, ray.exceptions.RayError, RuntimeFailure, ServerLost) as error:
            raise _cause(error) from error
        finally:
            driver.kill()


class _Driver:
    """Supervises the actors of one training: follows events, notices deaths."""

    def __init__(
        self, job: Job, start: Snapshot, workers: int, channel: str, havoc: Havoc | None
    ) -> None:
        self._job, self._start, self._workers = job, start, workers
        self._channel, self._havoc = channel, havoc
        self._servers = _start_servers(job, start, workers)
        self._server, *self._followers = self._servers
        for number, server in enumerate(self._servers):
            self._born(f"server {number}", server)
        self._fleet: Fleet | None = None
        self._following: dict[Any, int] = {}

    def _born(self, name: str, actor: Any) -> None:
        if self._havoc is not None:
            self._havoc.born(name, actor.process.remote())

    def kill(self) -> None:
        """End all actors."""
        if self._havoc is not None:
            self._havoc.calm()
        if self._fleet is not None:
            self._fleet.kill()
        for actor in self._servers:
            ray.kill(actor)

    def _make_worker(self, number: int, again: set[int]) -> Any:
        """Who replaces another has nothing left over."""
        start = replace(self._start, left_over={}) if number in again else self._start
        again.add(number)
        # A Ray of our own has room for the first workers alone.
        room = number < self._workers or ray.available_resources().get("CPU", 0) >= 1
        actor = (
            ray.remote(WorkerProcess).options(num_cpus=int(room))
            .remote(self._job, start, number, self._workers)
        )  # fmt: skip
        self._born(f"worker {number}", actor)
        actor.open.remote()  # what goes wrong, `connect` says
        return actor

    def _begin(self) -> Fleet:
        """Open the data everywhere, connect everyone, and set the workers to work."""
        make = partial(self._make_worker, again=set())
        waiting = [server.address.remote() for server in self._servers]
        self._fleet = fleet = Fleet(
            make, self._channel, self._server.lost.remote, self._workers, PATIENCE
        )
        found = _get(waiting)
        contacts = [(server, *at) for server, at in zip(self._servers, found, strict=True)]
        fleet.connect_all(contacts)
        for number, follower in enumerate(self._followers, 1):
            self._following[follower.follow.remote(contacts[0], self._channel)] = number
        fleet.set_to_work()
        return fleet

    def events(
        self, should_stop: Callable[[], bool], wanted: Callable[[], int | None]
    ) -> Iterator[Event]:
        stopping = False
        fleet = self._begin()
        yield Connected(tuple(fleet.names[worker] for worker in sorted(fleet.names)))
        poll = _POLL_SECONDS if self._havoc is None else _HAVOC_SECONDS
        waiting = self._server.events.remote(poll)
        while True:
            if should_stop() and not stopping:
                stopping = True
                self._server.stop.remote()
            check_ray()
            every = [waiting, *self._following, *fleet.pending]
            done, _ = ray.wait(every, timeout=_POLL_SECONDS)
            for reference in done:
                if reference in self._following:
                    _get(reference)
                elif reference != waiting:
                    fleet.ended(reference)
            if (workers := wanted()) is not None and (said := fleet.resize(workers)):
                yield Notice(said)
            if (said := fleet.check()) is not None:
                yield Notice(said)
            if waiting in done:
                events = self._taken(_get(waiting))
                versions = [event.update.version for event in events if isinstance(event, Updated)]
                if versions:
                    fleet.progressed()
                    if self._havoc is not None:
                        self._havoc.updated(versions[-1])
                yield from events
                if events and isinstance(events[-1], Ended):
                    return
                waiting = self._server.events.remote(poll)

    def _taken(self, events: list[Event]) -> list[Event]:
        """The events with what the coordinator alone does not know."""
        events = [self._whole(event) for event in events]
        if self._job.trace and events and isinstance(events[-1], Ended):
            events[-1] = replace(events[-1], tracks=self._tracks())
        return events

    def _whole(self, event: Event) -> Event:
        """The event with the whole of W, where a snapshot has the coordinator's range alone."""
        if not (self._followers and isinstance(event, EpochEnded | Saved | Ended)):
            return event
        own = event.snapshot
        found = self._parts(own.version, own.floor)
        reads = {
            version: np.concatenate(
                [array, *(part for part, _, _ in self._parts(version, own.floor))]
            )
            for version, array in own.reads.items()
        }
        weights = np.concatenate([own.weights, *(part for part, _, _ in found)])
        state = {
            name: np.concatenate([array, *(part[name] for _, part, _ in found)])
            for name, array in own.state.items()
        }
        if isinstance(event, Ended):
            event.statistics.bytes_pushed += sum(received for _, _, received in found)
        return replace(event, snapshot=replace(own, weights=weights, state=state, reads=reads))

    def _parts(self, version: int, floor: int) -> list[Any]:
        """What the followers have kept of a version."""
        found: list[Any] = _get([each.snapshot.remote(version, floor) for each in self._followers])
        return found

    def _tracks(self) -> tuple[Track, ...]:
        """The timelines of all processes that live."""
        actors = [*self._servers, *(self._fleet.actors if self._fleet else ())]
        found = []
        for reference in [actor.track.remote() for actor in actors]:
            try:
                found.append(ray.get(reference, timeout=_TRACK_SECONDS))
            except (ray.exceptions.RayError, TimeoutError):
                continue
        return tuple(found)


def _get(references: Any) -> Any:
    """What servers answer."""
    try:
        while True:
            check_ray()
            with suppress(ray.exceptions.GetTimeoutError):
                return ray.get(references, timeout=_POLL_SECONDS)
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from error
    except ray.exceptions.RayActorError as error:
        raise server_lost(error) from error


def _cause(error: Exception) -> Exception:
    """What to tell: when Ray itself has died, everything else is a consequence."""
    try:
        check_ray()
    except RuntimeFailure as found:
        return found
    if isinstance(error, ChannelClosed):
        return ServerLost(f"a parameter server can no longer be reached: {error.problem}", HINT)
    if isinstance(error, RuntimeFailure | ServerLost):
        return error
    return RuntimeFailure(f"Ray can no longer be reached: {error}".rstrip("."), HINT)
