"""Training on a virtual clock: the real server, plan, data and gradients, simulated workers.

Nothing here reads a wall clock. A simulated worker's gradient is computed when its push comes to
the server, with W as it was when its lease was granted; what a worker computes depends on these
two alone, so the result is that of a real fleet whose messages come in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.messages import Applied, Decision, Grant, Lease
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import cover
from distsgd.engine.events import Ended, Event, Recorder
from distsgd.engine.job import Job, Snapshot
from distsgd.engine.worker import Worker
from distsgd.errors import RuntimeFailure
from distsgd.simulation.fleet import Fleet, SharedWeights, VirtualClock
from distsgd.spelling import spelled

__all__ = ["Simulation", "lease_examples"]


@dataclass
class _Member:
    """A simulated worker.

    Attributes:
        slowness: how many times slower than usual it is.
        random: source of its jitter.
        alive: whether it is there.
        life: counts its failures; what an earlier life has sent does not arrive.
        lease: what it is computing.
        asked: since when it has been waiting for work, in virtual seconds.
        came: since when it has been there.
        present: virtual seconds for which it has been there, up to ``came``.
    """

    slowness: float
    random: Random
    alive: bool = True
    life: int = 0
    lease: Lease | None = None
    asked: float | None = 0.0
    came: float = 0.0
    present: float = 0.0


class Simulation:
    """One training by a simulated fleet.

    Args:
        job: what to train.
        start: where to begin.
        fleet: who trains it.
        seed: of the fleet's random slowness.
    """

    def __init__(self, job: Job, start: Snapshot, fleet: Fleet, seed: int) -> None:
        self._job, self._fleet = job, fleet
        self._server = job.server(start)
        self._worker = Worker(job)
        self._clock, self._copies = VirtualClock(), SharedWeights()
        self._feedback = [job.feedback(start, n, fleet.workers) for n in range(fleet.workers)]
        self._recorder = Recorder(job, self._server, lambda: self._clock.now)
        self._members = [
            _Member(slowness, fleet.random(seed, worker))
            for worker, slowness in enumerate(fleet.slowness())
        ]

    @property
    def weights(self) -> Floats:
        """Flat W as it is now; changes while events are taken."""
        return self._server.weights

    @property
    def version(self) -> int:
        """Updates applied to W so far."""
        return self._server.version

    @property
    def seconds(self) -> float:
        """Virtual seconds since the start."""
        return self._clock.now

    def events(self, should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Train, yielding events, whose seconds are virtual; the last is an `Ended`.

        Args:
            should_stop: asked after every event.

        Raises:
            RuntimeFailure: all workers have failed, and none comes back.
        """
        self._schedule()
        for decisions in self._clock.run():
            for decision in decisions:
                if isinstance(decision, Grant):
                    self._begin(decision)
                    continue
                for event in self._recorder.record(decision):
                    if isinstance(event, Ended):
                        if isinstance(decision, Applied) and decision.version < self.version:
                            continue  # the same push has led to further updates
                        self._settle()
                        yield self._recorder.ended(event.diverged)
                        return
                    yield event
                    if should_stop():
                        self._settle()
                        yield self._recorder.ended()
                        return
        raise RuntimeFailure(
            f"all simulated workers have failed by {self._clock.now:g} s, after "
            f"{self._server.version} updates",
            f"Let one come back with {spelled('rejoin')} WORKER@SECONDS, or fail fewer",
        )

    def presence(self) -> list[float]:
        """Virtual seconds for which each worker has been there."""
        return [member.present for member in self._members]

    def _schedule(self) -> None:
        for worker in range(self._fleet.workers):
            self._server.joined(worker)
        for worker in range(self._fleet.workers):
            self._clock.at(0.0, self._ask, worker, 0)
        for worker, time in self._fleet.failures:
            self._clock.at(time, self._fail, worker)
        for worker, time in self._fleet.rejoins:
            self._clock.at(time, self._rejoin, worker)

    def _ask(self, worker: int, life: int) -> list[Decision]:
        member = self._members[worker]
        if member.life != life:
            return []
        member.asked = self._clock.now
        return self._server.pull(worker)

    def _begin(self, grant: Grant) -> None:
        """A worker gets W and a lease; its push is on its way from here on."""
        member, lease, fleet = self._members[grant.worker], grant.lease, self._fleet
        self._waited(grant.worker)
        member.lease = lease
        self._copies.hold(lease.version, self._server.weights)
        nodes = 1 if lease.replicas else len(cover(lease.first, lease.last, self._slots(lease)))
        compute = lease_examples(self._job.plan, lease) / fleet.speed
        seconds = (
            fleet.transfer(self._job.vector_bytes / self._job.servers)
            + compute * member.slowness * fleet.jitter.draw(member.random)
            + fleet.transfer(self._job.push_bytes(nodes) / self._job.servers)
        )
        self._clock.at(self._clock.now + seconds, self._arrive, grant.worker, member.life)

    def _slots(self, lease: Lease) -> int:
        return self._job.plan.slots(lease.step)

    def _arrive(self, worker: int, life: int) -> list[Decision]:
        """A push comes to the server, and with it the worker's wish for more."""
        member = self._members[worker]
        if member.life != life:
            return []
        lease = member.lease
        assert lease is not None
        with np.errstate(all="ignore"):  # a diverging W gives infinities, which the server finds
            self._worker.feedback = self._feedback[worker]
            push = self._worker.answer(lease, self._copies.of(lease.version))
            self._recorder.statistics.bytes_pushed += push.size
            decisions = self._server.push(worker, push)
        self._copies.release(lease.version)
        member.lease, member.asked = None, self._clock.now
        return decisions + self._server.pull(worker)

    def _fail(self, worker: int) -> list[Decision]:
        member = self._members[worker]
        self._waited(worker)
        self._leave(member)
        member.alive, member.life = False, member.life + 1
        if member.lease is not None:
            self._copies.release(member.lease.version)
            member.lease = None
        return self._server.lost(worker)

    def _rejoin(self, worker: int) -> list[Decision]:
        member = self._members[worker]
        member.alive, member.came = True, self._clock.now
        return self._server.joined(worker) + self._ask(worker, member.life)

    def _waited(self, worker: int) -> None:
        member = self._members[worker]
        if member.asked is not None:
            self._recorder.statistics.waited(worker, self._clock.now - member.asked)
            member.asked = None

    def _leave(self, member: _Member) -> None:
        if member.alive:
            member.present += self._clock.now - member.came
            member.came = self._clock.now

    def _settle(self) -> None:
        """Close the books: who waits, waits until the end."""
        for worker, member in enumerate(self._members):
            self._waited(worker)
            self._leave(member)


def lease_examples(plan: Plan, lease: Lease) -> int:
    """How many examples a lease is over; with local steps, all of its steps."""
    return sum(
        plan.slot(step, last - 1)[1] - plan.slot(step, first)[0]
        for step, first, last in lease.slots(plan)
    )
