"""Where a run stands: which slots of its plan have been applied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from distsgd.core.consistency import Policy
from distsgd.core.messages import LIFE, Lease, Update
from distsgd.core.open_minibatch import Piece
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import shares

__all__ = ["Position", "position_after", "slots_of_lease"]


@dataclass(frozen=True)
class Position:
    """What a server has to know of the updates before, to go on.

    Attributes:
        version: how many there were.
        step: the first step of the plan of which nothing has been handed out for good.
        holes: what has not been applied of the steps before, as pieces (step, first, last).
        examples: epoch -> examples applied.
        serials: worker -> serial of its next lease (`Lease.serial`); 0 for others.
    """

    version: int
    step: int
    holes: tuple[Piece, ...] = ()
    examples: dict[int, int] = field(default_factory=dict)
    serials: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of_step(cls, plan: Plan, version: int) -> Position:
        """After so many updates of one step of the plan each, in order."""
        examples = {}
        if 0 < version < plan.total_steps:
            examples[plan.epoch_of(version)] = plan.minibatch(version)[0]
        return cls(version, version, (), examples)


def slots_of_lease(lease: Lease, plan: Plan) -> Iterator[tuple[int, int]]:
    """(step, slot) of every slot of a lease, local steps included."""
    for step in range(lease.step, lease.step + lease.steps):
        first, last = lease.first, lease.last
        if lease.shares:
            parts = shares(plan.slots(step), lease.shares)
            first, last = parts[first] if first < len(parts) else (0, 0)
        yield from ((step, slot) for slot in range(first, last))


def position_after(plan: Plan, policy: Policy, updates: Iterable[Update]) -> Position:
    """The position after all updates of a run, in their order."""
    done: dict[int, set[int]] = {}
    serials: Counter[int] = Counter()
    version = 0
    for update in updates:
        version += 1
        for worker, lease in update.contributions:
            serials[worker] = max(serials[worker], (lease.serial // LIFE + 1) * LIFE)
            for step, slot in slots_of_lease(lease, plan):
                done.setdefault(step, set()).add(slot)
    step = max(done, default=-1) + 1
    if policy.requeues:  # the slots of an epoch are handed out one by one
        step = -(-step // plan.steps_per_epoch) * plan.steps_per_epoch
    return Position(
        version, step, tuple(_holes(plan, policy, done, step)), _examples(plan, done), dict(serials)
    )


def _holes(plan: Plan, policy: Policy, done: dict[int, set[int]], before: int) -> Iterator[Piece]:
    for step in range(before):
        missing = set(range(plan.slots(step))) - done.get(step, set())
        if not missing:
            continue
        if policy.requeues:
            yield from ((step, slot, slot + 1) for slot in sorted(missing))
        else:
            yield (step, 0, plan.slots(step))


def _examples(plan: Plan, done: dict[int, set[int]]) -> dict[int, int]:
    found: Counter[int] = Counter()
    for step, slots in done.items():
        for slot in slots:
            low, high = plan.slot(step, slot)
            found[plan.epoch_of(step)] += high - low
    return dict(found)
