"""How often a fleet updates W: the real server on a virtual clock, with processors that are shared.

`distsgd.simulation` trains on a virtual clock whose workers have processors of their own and whose
server answers at once. Here nothing is trained. Workers and server take turns on the cores of
their machine, and the server takes time for every push and every update.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from distsgd.core.messages import Applied, Decision, Grant, Lease, Push
from distsgd.core.model import SlotLoss
from distsgd.core.optim import Schedule, make_optimizer
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import cover
from distsgd.core.server import ParameterServer
from distsgd.core.server.consistency import Policy

__all__ = ["Costs", "Member", "seconds_of_update"]

_UPDATES = 48
"""Updates that are made, at least; those of the first third do not count."""


@dataclass(frozen=True)
class Member:
    """A worker of the fleet.

    Attributes:
        lease_seconds: seconds of one core for a lease, from the examples in it.
        machine: which it is on; the server is on machine 0.
        slowness: how many times longer it takes.
        away: seconds of a message between it and the server, one way, for which no core is needed.
    """

    lease_seconds: Callable[[int], float]
    machine: int = 0
    slowness: float = 1.0
    away: float = 0.0


@dataclass(frozen=True)
class Costs:
    """What else takes time.

    Attributes:
        cores: of each machine, or of all machines one by one.
        push: seconds of a core for the server to take a push.
        update: seconds of a core to apply an update.
        crowd: how many times longer a core takes while another of its machine computes.
    """

    cores: int | Sequence[int]
    push: float
    update: float
    crowd: float = 1.0


@dataclass
class _Work:
    """Seconds of a core that somebody still has to compute, and what follows."""

    left: float
    then: Callable[[], None]


@dataclass
class _Cores:
    """A machine whose cores are shared equally by all who compute."""

    cores: int
    crowd: float
    running: list[_Work] = field(default_factory=list)

    def speed(self) -> float:
        """What each gets of a core."""
        active = len(self.running)
        share = min(1.0, self.cores / active)
        return share / (self.crowd if min(active, self.cores) > 1 else 1.0)


class _Clock:
    """Virtual time: timers, and work on machines."""

    def __init__(self, machines: int, costs: Costs) -> None:
        self.now = 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        each = [costs.cores] * machines if isinstance(costs.cores, int) else costs.cores
        self._machines = [_Cores(cores, costs.crowd) for cores in each]
        self._asked = 0

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        self._asked += 1
        self._timers.append((self.now + seconds, self._asked, then))

    def compute(self, machine: int, seconds: float, then: Callable[[], None]) -> None:
        self._machines[machine].running.append(_Work(seconds, then))

    def step(self) -> None:
        """Go on to what happens next."""
        timer = min(self._timers, default=None)
        wait, first = (timer[0] - self.now if timer else float("inf")), None
        for cores in self._machines:
            for work in cores.running:
                if (took := work.left / cores.speed()) < wait:
                    wait, first = took, (cores, work)
        for cores in self._machines:
            done = wait * cores.speed() if cores.running else 0.0
            for work in cores.running:
                work.left = max(0.0, work.left - done)
        self.now += wait
        if first is not None:
            first[0].running.remove(first[1])
            first[1].then()
        else:
            assert timer is not None
            self._timers.remove(timer)
            timer[2]()


class _Fleet:
    def __init__(
        self, plan: Plan, policy: Policy, members: Sequence[Member], costs: Costs, own_places: bool
    ) -> None:
        self._plan, self._members, self._costs = plan, members, costs
        machines = 1 + max(member.machine for member in members)
        self._clock = _Clock(machines, costs)
        weights = np.zeros(16, np.float32)
        self._server = ParameterServer(
            weights, decay=np.zeros_like(weights), optimizer=make_optimizer("sgd", weights, 0.0),
            schedule=Schedule(
                name="constant", learning_rate=0.1, total=plan.total_steps, warmup=0, every=1,
                factor=1.0,
            ),
            plan=plan, policy=policy, own_places=own_places,
        )  # fmt: skip
        self._inbox: deque[tuple[int, Push]] = deque()
        self._busy = False
        self.times = [0.0]  # at which W was updated
        for worker in range(len(members)):
            self._server.joined(worker)
        for worker in range(len(members)):
            self._give(self._server.pull(worker))

    def run(self, updates: int) -> None:
        while len(self.times) <= updates and not self._server.finished:
            self._clock.step()

    def _give(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Applied):
                self.times.append(self._clock.now)
            elif isinstance(decision, Grant):
                away = self._members[decision.worker].away
                self._clock.after(away, lambda grant=decision: self._begin(grant))  # type: ignore[misc]

    def _begin(self, grant: Grant) -> None:
        worker, lease = grant.worker, grant.lease
        member = self._members[worker]
        seconds = member.slowness * member.lease_seconds(self._examples(lease))
        self._clock.compute(member.machine, seconds, lambda: self._send(worker, lease))

    def _send(self, worker: int, lease: Lease) -> None:
        push = self._push(lease)
        self._clock.after(self._members[worker].away, lambda: self._arrive(worker, push))

    def _arrive(self, worker: int, push: Push) -> None:
        self._inbox.append((worker, push))
        self._serve()

    def _serve(self) -> None:
        """The server takes one push at a time."""
        if self._busy or not self._inbox:
            return
        self._busy = True
        self._clock.compute(0, self._costs.push, self._take)

    def _take(self) -> None:
        worker, push = self._inbox.popleft()
        decisions = self._server.exchange(worker, push)
        updates = sum(isinstance(decision, Applied) for decision in decisions)

        def done() -> None:
            self._busy = False
            self._give(decisions)
            self._serve()

        if updates:
            self._clock.compute(0, updates * self._costs.update, done)
        else:
            done()

    def _examples(self, lease: Lease) -> int:
        plan = self._plan
        return sum(
            plan.slot(step, last - 1)[1] - plan.slot(step, first)[0]
            for step, first, last in lease.slots(plan)
        )

    def _push(self, lease: Lease) -> Push:
        plan, losses = self._plan, list[SlotLoss]()
        for step, first, last in lease.slots(plan):
            for slot in range(first, last):
                low, high = plan.slot(step, slot)
                losses.append(SlotLoss(1.0, 0, high - low))
        rows = 1
        if not lease.replicas:
            rows = len(cover(lease.first, lease.last, plan.slots(lease.step)))
        return Push(lease, tuple(losses), np.zeros((rows, 16), np.float32))


def seconds_of_update(
    plan: Plan,
    policy: Policy,
    members: Sequence[Member],
    costs: Costs,
    *,
    own_places: bool = False,
) -> float:
    """Virtual seconds between two updates of W.

    Args:
        plan: of the minibatches.
        policy: when a worker may continue.
        members: the workers.
        costs: of the server, and how cores are shared.
        own_places: as for `ParameterServer`: with compressed gradients.
    """
    fleet = _Fleet(plan, policy, members, costs, own_places)
    fleet.run(max(_UPDATES, 8 * len(members)))
    times = fleet.times
    first = len(times) // 3
    return (times[-1] - times[first]) / (len(times) - 1 - first)
