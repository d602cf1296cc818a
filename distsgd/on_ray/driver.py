"""Training on Ray: server actors, worker actors, and a driver that no step waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import Any

import numpy as np
import ray

from distsgd.engine.events import (
    Connected,
    Ended,
    EpochEnded,
    Event,
    Happened,
    Hung,
    Notice,
    Saved,
    Statistics,
    Track,
    Updated,
    UpdatedByTeam,
)
from distsgd.engine.job import Job, Snapshot
from distsgd.errors import ProcessLost, RuntimeFailure
from distsgd.on_ray.capacity import server_placement, worker_capacity, worker_placement
from distsgd.on_ray.chaos_kills import ChaosKills
from distsgd.on_ray.fleet import WAIT_SECONDS, Fleet
from distsgd.on_ray.health import HINT, answer_of, check_ray, classify_failure
from distsgd.on_ray.processes import FollowerProcess, ServerProcess, WorkerProcess
from distsgd.on_ray.session import ray_session
from distsgd.on_ray.sharing import owns_ray

__all__ = ["train_on_ray"]

_POLL_SECONDS = 0.25
_CHAOS_SECONDS = 0.02  # how late a strike may be
_QUIET_SECONDS = 5.0
_SLACK_SECONDS = 25.0
"""More than that in a session of our own, where processes wait for a core, not for a place."""
_TRACK_SECONDS = 30.0
_SPARE = 20  # concurrent calls beside those of the first workers


def _cpus_each() -> int:
    """CPUs that Ray counts for a process; 0 in a session of our own, which trainings may share."""
    return 0 if owns_ray() else 1


def _start_servers(job: Job, start: Snapshot, workers: int) -> list[Any]:
    """Start the coordinator and its followers."""
    where, cpus = server_placement(job.placement), _cpus_each()
    coordinator = (
        ray.remote(ServerProcess)
        .options(num_cpus=cpus, max_concurrency=2 * workers + job.servers + _SPARE, **where)
        .remote(job, start, workers)
    )
    followers = [
        ray.remote(FollowerProcess)
        .options(num_cpus=cpus, max_concurrency=2 * workers + _SPARE, **where)
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
    patience: float = WAIT_SECONDS,
    kills: ChaosKills | None = None,
) -> Iterator[Event]:
    """Train with ``workers`` worker processes, yielding events as they come.

    A worker that dies or hangs is replaced, and its slots go to the others at once; with error
    feedback, whose residual is lost with it, that is an error that a resume recovers from.

    Args:
        job: what to train.
        start: where to start.
        workers: number of worker processes, at least 1.
        should_stop: asked several times a second.
        channel: "auto" (shared memory on the server's node, else TCP, else actor calls), or one
            of "shm", "tcp", "ray".
        wanted: asked several times a second for the number of workers; None if unchanged.
        patience: seconds to wait when no worker is connected, or no server can be placed.
        kills: kills and stops processes on purpose.

    Raises:
        ProcessLost: a server has died, or a worker with its residual; training can be resumed from
            the last update.
        RuntimeFailure: workers die repeatedly, or none has connected for long.
        DistsgdError: an error of a worker or a server, such as a corrupt shard.
    """
    with ray_session(cpus=workers + job.servers):
        driver = _Driver(job, start, workers, channel, patience, kills)
        try:
            yield from driver.events(should_stop, wanted)
        except (OSError, ray.exceptions.RayError, RuntimeFailure, ProcessLost) as error:
            raise classify_failure(error) from error
        finally:
            driver.kill()


def _one_by_one(events: list[Event]) -> Iterator[Event]:
    """The events for those who follow the training: each update of a team by itself."""
    for event in events:
        if isinstance(event, UpdatedByTeam):
            yield from map(Updated, event.stretch.updates())
        elif not isinstance(event, Hung):
            yield event


class _Driver:
    """Supervises the actors of one training: passes events on, notices deaths."""

    def __init__(
        self, job: Job, start: Snapshot, workers: int, channel: str, patience: float,
        kills: ChaosKills | None,
    ) -> None:  # fmt: skip
        self._job, self._start, self._workers = job, start, workers
        self._channel, self._patience, self._kills = channel, patience, kills
        self._servers: list[Any] = []
        self._fleet: Fleet | None = None
        self._following: set[Any] = set()

    def _started(self, name: str, actor: Any) -> None:
        if self._kills is not None:
            self._kills.started(name, actor.process.remote())

    def kill(self) -> None:
        """End all actors."""
        if self._kills is not None:
            self._kills.close()
        with suppress(ray.exceptions.RayError):
            if self._fleet is not None:
                self._fleet.kill()
            for actor in self._servers:
                ray.kill(actor)

    def _make_worker(self, number: int) -> Any:
        check_ray(surely=True)
        actor = (
            ray.remote(WorkerProcess).options(num_cpus=_cpus_each(), **worker_placement())
            .remote(self._job, self._start, number, self._workers)
        )  # fmt: skip
        self._started(f"worker {number}", actor)
        actor.open.remote()  # `connect` raises its errors
        return actor

    def _start_all(self, should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Start all actors, and make the workers connect; a stop before that ends the training."""
        check_ray(surely=True)
        self._servers = _start_servers(self._job, self._start, self._workers)
        for number, server in enumerate(self._servers):
            self._started(f"server {number}", server)
        addresses = [server.address.remote() for server in self._servers]
        capacity = None if owns_ray() else worker_capacity(self._job.servers)
        together = self._job.has_residuals
        slack = _SLACK_SECONDS if owns_ray() else 0.0
        fleet = Fleet(
            self._make_worker,
            self._channel,
            self._servers[0],
            self._workers,
            self._patience,
            capacity,
            together,
            slack,
            self._job.exact,
        )
        self._fleet = fleet
        began, warned = monotonic(), False
        while len(ray.wait(addresses, num_returns=len(addresses), timeout=_POLL_SECONDS)[1]):
            check_ray()
            waited = monotonic() - began
            if should_stop():
                yield Ended(self._start, 0.0, 0, False, Statistics())
                return
            if waited > self._patience:
                raise RuntimeFailure(f"no server could be placed for {self._patience:g} s", HINT)
            if not warned and waited > min(_QUIET_SECONDS + slack, self._patience / 2):
                warned = True
                seconds = f"{self._patience:g} s"
                yield Notice(f"waiting up to {seconds} for a server to be placed and started")
        found = answer_of(addresses)
        contacts = [(server, *at) for server, at in zip(self._servers, found, strict=True)]
        fleet.connect_all(contacts)
        self._following = {
            follower.follow.remote(contacts[0], self._channel) for follower in self._servers[1:]
        }

    def events(
        self, should_stop: Callable[[], bool], wanted: Callable[[], int | None]
    ) -> Iterator[Event]:
        for event in self._start_all(should_stop):
            yield event
            if isinstance(event, Ended):
                return
        assert self._fleet is not None
        server, fleet, stopping = self._servers[0], self._fleet, False
        poll = _POLL_SECONDS if self._kills is None else _CHAOS_SECONDS
        waiting = server.events.remote(poll)
        before, since = list[Happened](), list[Happened]()  # the call for events, and since then
        while True:
            if should_stop() and not stopping:
                stopping = True
                server.stop.remote()
            check_ray()
            every = [waiting, *self._following, *fleet.pending]
            done, _ = ray.wait(every, timeout=_POLL_SECONDS)
            for reference in done:
                if reference in self._following:
                    answer_of(reference)
                elif reference != waiting:
                    fleet.ended(reference)
            yield from self._supervise(fleet, wanted())
            since += fleet.take_happened()
            if waiting in done:
                events = self._completed(answer_of(waiting))
                versions = [event.update.version for event in events if isinstance(event, Updated)]
                if versions:
                    fleet.progressed()
                    if self._kills is not None:
                        self._kills.updated(versions[-1])
                # What the server has done until then comes first, so that the time is right.
                at_end = events and isinstance(events[-1], Ended)
                yield from events[:-1] if at_end else events
                yield from before
                if at_end:
                    yield from since
                    yield events[-1]
                    return
                before, since = since, []
                waiting = server.events.remote(poll)

    def _supervise(self, fleet: Fleet, wanted: int | None) -> Iterator[Event]:
        """Start, resize and check the workers; yields notices about them."""
        if not fleet.started and fleet.enough():
            said = fleet.start_work()
            there = sorted(fleet.names)
            yield Connected(
                tuple(fleet.names[worker] for worker in there),
                tuple(fleet.hosts[worker] for worker in there),
                tuple(address.tcp[0] for _, _, address in fleet.contacts),
            )
            if said is not None:
                yield Notice(said)
        if wanted is not None and (said := fleet.resize(wanted)):
            yield Notice(said, kind="scaled")
        if (notice := fleet.check()) is not None:
            yield notice

    def _completed(self, events: list[Event]) -> list[Event]:
        """The events with what the coordinator does not know; hung workers are replaced."""
        assert self._fleet is not None
        hung = [worker for event in events if isinstance(event, Hung) for worker in event.workers]
        said = [self._fleet.hung(worker) for worker in hung]
        events = [self._merged(event) for event in _one_by_one(events)]
        events = [*(Notice(text, kind="replaced") for text in said if text), *events]
        if self._job.trace and events and isinstance(events[-1], Ended):
            events[-1] = replace(events[-1], tracks=self._tracks())
        return events

    def _merged(self, event: Event) -> Event:
        """The event with all of W: the coordinator's snapshots have only its own range.

        Always a copy. An array that lies in Ray's object store keeps it in use, and when that is
        gone, Ray ends this process as soon as the array is freed.
        """
        if not isinstance(event, EpochEnded | Saved | Ended):
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
        """The ranges of a version that the followers have kept."""
        followers = self._servers[1:]
        found: list[Any] = answer_of([one.snapshot.remote(version, floor) for one in followers])
        return found

    def _tracks(self) -> tuple[Track, ...]:
        """The timelines of all living processes."""
        actors = [*self._servers, *(self._fleet.actors if self._fleet else ())]
        found = []
        for reference in [actor.track.remote() for actor in actors]:
            try:
                found.append(ray.get(reference, timeout=_TRACK_SECONDS))
            except (ray.exceptions.RayError, TimeoutError):
                continue
        return tuple(found)
