"""A toy training problem, and a fleet of workers around its parameter server.

Nothing here is timed or threaded: a test says what happens next, and every decision of the
server is checked as it is made.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from distsgd.core.messages import Applied, Dismiss, Diverged, Dropped, Grant, Push
from distsgd.core.model import SlotLoss
from distsgd.core.optim import Schedule, make_optimizer
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import cover, shares, sum_node
from distsgd.core.server import ParameterServer
from distsgd.core.server.consistency import Policy

PARAMETERS = 6
START = np.linspace(-1, 1, PARAMETERS, dtype=np.float32)
DECAY = np.linspace(0, 0.1, PARAMETERS, dtype=np.float32)


def toy_plan(examples=23, batch_size=10, slot_size=3, epochs=2):
    """Steps of 4, 4 and 1 slots, of which the last is short."""
    return Plan(
        seed=0, sampling="shuffle", examples=examples, batch_size=batch_size,
        slot_size=slot_size, epochs=epochs,
    )  # fmt: skip


@cache
def noise(step, slot):
    """Float32 numbers of very different sizes, so that the order of sums shows."""
    rng = np.random.default_rng([step, slot])
    values = rng.standard_normal(PARAMETERS) * 10.0 ** rng.integers(-2, 3)
    return values.astype(np.float32)


@cache
def loss_and_hits(step, slot, examples):
    rng = np.random.default_rng([step, slot, 1])
    return 10.0 ** rng.integers(-8, 9) * rng.random(), int(rng.integers(0, examples + 1))


@dataclass(frozen=True)
class Toy:
    """Losses and gradients of slots as pure functions of (W, step, slot), without images."""

    plan: Plan
    optimizer: str = "momentum"
    policy: Policy | None = None

    def gradient(self, weights, step, slot):
        """The slot's noise plus W / 8."""
        return noise(step, slot) + weights / np.float32(8)

    def loss(self, weights, step, slot):
        low, high = self.plan.slot(step, slot)
        value, hits = loss_and_hits(step, slot, high - low)
        return SlotLoss(value + abs(float(weights[0])), hits, high - low)

    def schedule(self):
        return Schedule(name="cosine", learning_rate=0.05, total=self.plan.total_steps)

    def answer(self, lease, weights):
        """What a worker pushes."""
        if lease.replicas:
            after, losses = self.replica(lease, weights)
            examples = np.float32(sum(loss.examples for loss in losses))
            return Push(lease, tuple(losses), ((weights - after) * examples)[None])
        slots, steps = self.plan.slots(lease.step), range(lease.first, lease.last)
        gradients = np.array([self.gradient(weights, lease.step, slot) for slot in steps])
        nodes = cover(lease.first, lease.last, slots)
        sums = np.array([sum_node(node, gradients, lease.first, slots) for node in nodes])
        return Push(lease, tuple(self.loss(weights, lease.step, slot) for slot in steps), sums)

    def replica(self, lease, weights):
        """W after the local steps of a lease, and the losses on the way."""
        schedule, losses = self.schedule(), []
        for step, slots in shares_of(self.plan, lease):
            parts = [self.loss(weights, step, slot) for slot in slots]
            total = sum(self.gradient(weights, step, slot) for slot in slots)
            mean = total / np.float32(sum(part.examples for part in parts)) + DECAY * weights
            weights = weights - np.float32(schedule.at(step)) * mean
            losses += parts
        return weights, losses

    def server(self, version=0, weights=START):
        weights = weights.copy()
        return ParameterServer(
            weights,
            decay=DECAY,
            optimizer=make_optimizer(self.optimizer, weights, 0.9),
            schedule=self.schedule(),
            plan=self.plan,
            policy=self.policy,
            version=version,
        )

    def all_slots(self):
        """Every (step, slot) of the run, once."""
        steps = range(self.plan.total_steps)
        return Counter((step, slot) for step in steps for slot in range(self.plan.slots(step)))


def shares_of(plan, lease):
    """Each step of a lease with its slots; a short step has none for the last replicas."""
    if not lease.replicas:
        return [(lease.step, range(lease.first, lease.last))]
    found = []
    for step in range(lease.step, lease.step + lease.steps):
        parts = shares(plan.slots(step), lease.replicas)
        if lease.first < len(parts):
            found.append((step, range(*parts[lease.first])))
    return found


def slots_of(lease):
    """The (step, slot) of a lease."""
    return {(lease.step, slot) for slot in range(lease.first, lease.last)}


@dataclass
class Fleet:
    """Workers around a server.

    Attributes:
        living: workers that have joined and are not lost.
        waiting: those that have pulled and have not been answered.
        held: worker -> what it was granted and has not answered, with W as it was then.
        sent: pushes that were sent, with their workers.
        late: answers of lost workers that may still arrive.
        used: how often the server accepted each (step, slot).
        applied: updates, in order.
    """

    toy: Toy
    server: ParameterServer
    living: list = field(default_factory=list)
    waiting: set = field(default_factory=set)
    held: dict = field(default_factory=dict)
    sent: list = field(default_factory=list)
    late: list = field(default_factory=list)
    used: Counter = field(default_factory=Counter)
    applied: list = field(default_factory=list)

    def join(self, worker):
        self.living.append(worker)
        self.held[worker] = []
        self._carry_out(self.server.joined(worker))

    def pull(self, worker):
        """The worker asks for work, and gives up what it holds; those answers may still come."""
        self.late += [(worker, self._compute(work)) for work in self.held[worker]]
        self.held[worker] = []
        self.waiting.add(worker)
        self._carry_out(self.server.pull(worker))

    def answer(self, worker):
        """The worker answers the oldest lease it holds."""
        self._send(worker, self._compute(self.held[worker].pop(0)))

    def send_again(self, number):
        """A push comes once more."""
        self._send(*self.sent[number])

    def lose(self, worker):
        """The worker goes; the answers it was working on may still come."""
        self.living.remove(worker)
        self.waiting.discard(worker)
        self.late += [(worker, self._compute(work)) for work in self.held.pop(worker)]
        self._carry_out(self.server.lost(worker))

    def send_late(self, number):
        """An answer comes from a worker that was lost before."""
        self._send(*self.late.pop(number))

    def finish(self, worker):
        """One worker goes on alone until it is dismissed; returns how many leases it answered."""
        answered = 0
        while True:
            while self.held[worker]:
                self.answer(worker)
                answered += 1
            self.pull(worker)
            if not self.held[worker]:
                assert worker not in self.waiting, "it waits for ever"
                return answered

    def busy(self):
        """Living workers that hold a lease."""
        return [worker for worker in self.living if self.held[worker]]

    def _compute(self, work):
        lease, weights = work
        return self.toy.answer(lease, weights)

    def _send(self, worker, push):
        version, weights = self.server.version, self.server.weights.copy()
        decisions = self.server.push(worker, push)
        if Dropped(worker, push.lease) in decisions:
            assert decisions == [Dropped(worker, push.lease)]
            assert self.server.weights.tobytes() == weights.tobytes()
            assert self.server.version == version
        else:
            assert push.lease.version == version, "a stale gradient was used"
            slots = slots_of(push.lease)
            assert not slots & set(self.used), "a slot was used twice"
            self.used.update(slots)
        self.sent.append((worker, push))
        self._carry_out(decisions)

    def _carry_out(self, decisions):
        for decision in decisions:
            match decision:
                case Grant(worker, lease):
                    self._check_grant(worker, lease)
                    self.waiting.remove(worker)
                    self.held[worker].append((lease, self.server.weights.copy()))
                case Dismiss(worker):
                    assert self.server.stopped
                    self.waiting.remove(worker)
                case Applied(step):
                    assert decision.version == step + 1
                    self.applied.append(decision)
                case Dropped() | Diverged():
                    pass

    def _check_grant(self, worker, lease):
        """Only who asked is answered; W is fresh; nobody else has these slots."""
        assert worker in self.living
        assert worker in self.waiting
        assert lease.step == lease.version == self.server.version
        assert 0 <= lease.first < lease.last <= self.toy.plan.slots(lease.step)
        leased = [slots_of(other) for held in self.held.values() for other, _ in held]
        assert not slots_of(lease) & set(self.used).union(*leased)


def granted(decisions):
    """The leases that were granted, by worker."""
    return {d.worker: d.lease for d in decisions if isinstance(d, Grant)}


def what_was_applied(fleet):
    """The updates of a fleet, without who computed what."""
    return [update._replace(contributions=()) for update in fleet.applied]


def run_alone(toy):
    """A run with a single worker: what every other run must equal."""
    fleet = Fleet(toy, toy.server())
    fleet.join(0)
    fleet.finish(0)
    return fleet


def run_in_turn(toy, workers, order=lambda busy: busy):
    """A run of workers that all join first; ``order`` says who answers first in every round."""
    fleet = Fleet(toy, toy.server())
    for worker in range(workers):
        fleet.join(worker)
    while not fleet.server.finished:
        for worker in range(workers):
            fleet.pull(worker)
        for worker in order(fleet.busy()):
            fleet.answer(worker)
    return fleet
