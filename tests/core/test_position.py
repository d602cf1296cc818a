"""The ledger keeps little, and tells what all updates together would tell."""

from __future__ import annotations

import json
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.messages import INCARNATION, Applied, Lease
from distsgd.core.plan import Plan
from distsgd.core.server import Ledger
from distsgd.core.server.consistency import make_policy

PLAN = Plan(seed=0, sampling="shuffle", examples=23, batch_size=6, slot_size=2, epochs=3)


def an_update(version: int, contributions: list[tuple[int, Lease]]) -> Applied:
    return Applied(0, 0, version, 0.0, 0, 1, 0.1, tuple(contributions), (), False)


def updates_of(random: Random, mixed: bool) -> list[Applied]:
    """Some slots of a plan, each once, nearly in order; whole steps unless mixed."""
    steps = list(range(PLAN.total_steps))
    pieces = [[(step, slot) for slot in range(PLAN.slots(step))] for step in steps]
    if mixed:
        pieces = [[piece] for step in pieces for piece in step]
    order = sorted(range(len(pieces)), key=lambda place: place + random.uniform(0, 4))
    chosen = order[: random.randrange(len(order) + 1)]
    updates = []
    for version, place in enumerate(chosen, 1):
        leases = [
            Lease(step, slot, slot + 1, 0, serial=random.choice((0, INCARNATION)))
            for step, slot in pieces[place]
        ]
        updates.append(an_update(version, [(random.randrange(3), lease) for lease in leases]))
    return updates


@pytest.mark.parametrize("policy", ["asp", "backup"])
@given(seed=st.integers(0, 10_000), turn=st.integers(0, 40))
def test_it_tells_what_all_updates_tell(policy: str, seed: int, turn: int) -> None:
    updates = updates_of(Random(seed), policy == "backup")
    ledger = Ledger()
    for number, update in enumerate(updates):
        if number == turn:  # on from a checkpoint
            ledger = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
        ledger.add(PLAN, update)
    used = {(lease.step, lease.first) for update in updates for _, lease in update.contributions}
    assert set(ledger.applied(PLAN)) == used
    found = ledger.position(PLAN, make_policy(policy))
    last = max((step for step, _ in used), default=-1)
    before = last + 1 if policy == "asp" else -(-(last + 1) // 4) * 4
    every = {(step, slot) for step in range(before) for slot in range(PLAN.slots(step))}
    holes = {(step, slot) for step, first, end in found.holes for slot in range(first, end)}
    assert (found.version, found.step, holes) == (len(updates), before, every - used)
    examples = Counter[int]()
    for step, slot in used:
        low, high = PLAN.slot(step, slot)
        examples[PLAN.epoch_of(step)] += high - low
    assert found.examples_seen == examples.total()
    whole = ledger.whole // PLAN.steps_per_epoch
    assert found.examples == {epoch: n for epoch, n in examples.items() if epoch >= whole}


def test_it_stays_small() -> None:
    plan = Plan(seed=0, sampling="shuffle", examples=24, batch_size=6, slot_size=2, epochs=1000)
    ledger = Ledger()
    for step in range(plan.total_steps):
        ledger.add(plan, an_update(step + 1, [(0, Lease(step, 0, 3, step))]))
    assert len(json.dumps(ledger.to_json())) < 200
    found = ledger.position(plan, make_policy("bsp"))
    assert (found.examples_seen, found.examples) == (24_000, {})
