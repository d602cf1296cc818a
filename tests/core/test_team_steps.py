"""How a team cuts its updates, adds its sums, and what it is granted and has made."""

import random
from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_fleet import toy_plan

from distsgd.core.messages import Lease
from distsgd.core.optim import Schedule
from distsgd.core.reduction_tree import TreeSum, cover, shares, sum_node
from distsgd.core.server.consistency import make_policy
from distsgd.core.server.standing import Standing, TeamRecords
from distsgd.core.server.team_steps import RangeSum, TeamSteps

BSP = make_policy("bsp")


def rows(random, count, size=5):
    """Numbers of very different sizes, so that the order of sums shows."""
    rng = np.random.default_rng(random.getrandbits(32))
    return (rng.standard_normal((count, size)) * 10.0 ** rng.integers(-4, 5, (count, 1))).astype(
        np.float32
    )


@settings(max_examples=60, deadline=None)
@given(
    leaves=st.integers(1, 70),
    members=st.integers(1, 9),
    chance=st.randoms(use_true_random=False),
)
def test_ranges_of_a_sum_have_the_bits_of_the_tree(leaves, members, chance):
    gradients = rows(chance, leaves)
    tree = TreeSum(leaves, 5, "float32")
    tree.start(leaves)
    plan = toy_plan(leaves, leaves, 1)
    steps = TeamSteps(plan, BSP, members)
    sums = []  # whoever has made a piece, its sums are in the rows of their first leaves
    for first, last in steps.pieces(0):
        own = np.full_like(gradients, np.nan)
        own[first:last] = gradients[first:last]
        for node in cover(first, last, leaves):
            tree.add(node, sum_node(node, own, 0, leaves))
        sums.append(own)
    expected, before = tree.total().copy(), [own.copy() for own in sums]
    cut = chance.randint(0, 5)
    found = []
    for low, high in ((0, cut), (cut, 5)):
        total = RangeSum(high - low, "float32", leaves).total(
            steps.cut(0), partial(part_of, sums, low, high)
        )
        found.append(total.copy())
        total[...] = np.nan  # it may be overwritten
    assert np.concatenate(found).tobytes() == expected.tobytes()
    assert [own.tobytes() for own in sums] == [own.tobytes() for own in before], (
        "what others may still read stays as it is"
    )


def part_of(sums, low, high, piece, leaf):
    return sums[piece][leaf, low:high]


@given(leaves=st.integers(1, 70), members=st.integers(1, 9))
def test_the_node_sums_of_an_update_are_those_of_its_pieces(leaves, members):
    steps = TeamSteps(toy_plan(leaves, leaves, 1), BSP, members)
    cut = steps.cut(0)
    assert cut.pieces == steps.pieces(0) and cut.pieces[-1][1] == leaves
    for piece, (first, last) in enumerate(cut.pieces):
        rows = [node.first for node in cover(first, last, leaves)]
        assert [row for of, row in cut.nodes if of == piece] == rows


def test_a_short_minibatch_leaves_the_last_members_without_a_piece():
    plan = toy_plan(23, 10, 3)  # 4, 4 and 1 slots
    steps = TeamSteps(plan, BSP, 3)
    assert steps.pieces(0) == tuple(shares(4, 3)) and steps.pieces(2) == ((0, 1),)
    assert steps.lease(2, 0, 7, 5) == Lease(2, 0, 1, 7, serial=5)
    assert steps.lease(2, 1, 7, 5) is None and steps.suits(2)


@pytest.mark.parametrize(("members", "suits"), [(1, False), (2, False), (3, True), (5, True)])
def test_each_replica_has_a_member_of_its_own(members, suits):
    steps = TeamSteps(toy_plan(40, 10, 2), make_policy("local", local_steps=2, replicas=3), members)
    assert steps.suits(0) == suits and steps.steps(0) == 2
    assert steps.lease(0, 0, 5, 7) == Lease(0, 0, 1, 5, 2, 3, 7)
    assert steps.lease(0, 3, 5, 7) is None


def standing(plan, policy=BSP, members=(3, 8), serials=(4, 1), step=0, version=0):
    return Standing(plan, policy, members, serials, step, version)


def test_a_lease_ends_with_its_epoch():
    plan = toy_plan(23, 10, 3, epochs=2)
    team = standing(plan)
    assert team.grant(2) == (0, 2, 0, 2, (3, 8), (4, 1))
    assert team.grant(5) == (2, 3, 2, 1, (3, 8), (6, 3)), "the second has no piece of the last"
    assert team.grant(5) == (3, 6, 3, 3, (3, 8), (7, 3))
    assert team.grant(1) is None and team.end == team.left == 6


def test_a_lease_ends_before_an_update_that_is_not_the_teams():
    plan = toy_plan(90, 10, 3, epochs=1)
    team = standing(plan)
    assert team.grant(9, {3, 4}.__contains__) == (0, 3, 0, 3, (3, 8), (4, 1))
    assert team.grant(9, {3, 4}.__contains__) is None and team.end == 3
    assert team.grant(9) == (3, 9, 3, 6, (3, 8), (7, 4))


def test_a_round_of_local_steps_is_one_update():
    plan = toy_plan(80, 10, 3, epochs=1)  # 8 steps: 3, 3 and the 2 that are left
    team = standing(plan, make_policy("local", local_steps=3, replicas=2))
    assert team.grant(2) == (0, 6, 0, 2, (3, 8), (4, 1))
    assert team.grant(2) == (6, 8, 2, 1, (3, 8), (6, 3))


@settings(max_examples=30, deadline=None)
@given(chance=st.randoms(use_true_random=False))
def test_what_was_made_is_what_was_granted_in_whatever_parts(chance):
    plan, policy, members = any_team(chance)
    steps = TeamSteps(plan, policy, len(members))
    schedule = Schedule(name="cosine", learning_rate=0.05, total=plan.total_steps)
    team = standing(plan, policy, members, (0,) * len(members))
    updates, losses, makers = [], [], []
    while (lease := team.grant(chance.randint(1, 6))) is not None:
        left = lease.updates
        assert team.resume_at == lease.step
        while left:
            count = chance.randint(1, left)
            left -= count
            sums = np.array([[chance.random(), chance.random(), 0] for _ in range(count)])
            hits = np.array([chance.randint(0, 9) for _ in range(count)])
            who = any_makers(chance, steps, team.resume_at, count, len(members))
            makers += who if who is not None else [range(len(members))] * count
            records = TeamRecords(sums, hits, None if who is None else np.array(who))
            stretch = team.made(records, schedule)
            found = list(stretch.updates())
            assert (stretch.version, stretch.end) == (found[0].version - 1, found[-1].version)
            assert stretch.ages() == Counter(age for update in found for age in update.ages)
            updates += found
            losses += [*zip(sums.sum(axis=1).tolist(), hits.tolist(), strict=True)]
        assert team.left == 0
    step, serials = 0, Counter()
    for version, (update, (loss, hits)) in enumerate(zip(updates, losses, strict=True)):
        expected = []
        for piece in range(len(steps.pieces(step))):
            worker = members[makers[version][piece]]
            expected.append((worker, steps.lease(step, piece, version, serials[worker])))
            serials[worker] += 1
        assert update.contributions == tuple(expected) and update.ages == [0] * len(expected)
        assert (update.step, update.version, update.correct) == (step, version + 1, hits)
        step += steps.steps(step)
        assert update.examples == examples_of(plan, update.step, step)
        assert update.loss == pytest.approx(loss / update.examples)
        assert update.learning_rate == schedule.at(update.step)
        assert update.epoch == plan.epoch_of(update.step) and not update.requeued
        assert update.ends_epoch == plan.ends_epoch(step - 1)
    assert step == plan.total_steps
    assert dict(team.serials()) == {worker: serials[worker] for worker in members}


def any_makers(chance, steps, step, count, members):
    """Who makes each piece of the next updates: now each its own, now anybody."""
    if chance.random() < 0.3:
        return None
    found = []
    for _ in range(count):
        pieces, helps = len(steps.pieces(step)), chance.random() < 0.5
        row = [chance.randrange(members) if helps else piece for piece in range(pieces)]
        found.append(row + [-1] * (members - pieces))
        step += steps.steps(step)
    return found


def any_team(chance: random.Random):
    batch, slot = chance.randint(1, 12), chance.randint(1, 4)
    plan = toy_plan(chance.randint(batch, 6 * batch), batch, slot, epochs=chance.randint(1, 3))
    members = tuple(sorted(chance.sample(range(9), chance.randint(1, 4))))
    replicas = chance.randint(1, len(members))
    local = make_policy("local", local_steps=chance.randint(1, 4), replicas=replicas)
    return plan, chance.choice((BSP, local)), members


def examples_of(plan, first, last):
    return sum(plan.batch_examples(step) for step in range(first, last))
