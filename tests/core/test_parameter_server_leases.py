"""The parameter server: who is given what, and which pushes are used."""

import random
from dataclasses import replace

import numpy as np
import pytest
from toy_fleet import START, Fleet, granted, run_alone

from distsgd.core.messages import Applied, Dropped, Grant, Lease, Push
from distsgd.core.server.consistency import make_policy

# Shares


def test_a_step_is_cut_into_a_share_for_each_worker(toy):
    server = toy.server()
    for worker in (5, 6, 7):
        assert server.joined(worker) == []
    assert server.pull(6) == [Grant(6, Lease(0, 0, 1, 0))]
    assert server.pull(5) == [Grant(5, Lease(0, 1, 2, 0))]
    assert server.pull(7) == [Grant(7, Lease(0, 2, 4, 0))]


def test_a_worker_with_others_behind_it_has_a_larger_share(toy):
    """From the next minibatch on, and the first one, so that it is one node of the tree."""
    server = toy.server()
    for worker in (0, 1, 2):
        server.joined(worker)
    server.node_teams({2: 2})
    leases = {worker: granted(server.pull(worker))[worker] for worker in (0, 1, 2)}
    assert [leases[worker].piece for worker in (2, 0, 1)] == [(0, 0, 2), (0, 2, 3), (0, 3, 4)]
    server.node_teams({})
    for worker, lease in leases.items():
        decisions = server.exchange(worker, toy.answer(lease, server.weights))
    again = sorted(lease.piece for lease in granted(decisions).values())
    assert again == [(1, 0, 1), (1, 1, 2), (1, 2, 4)]


def test_only_where_a_minibatch_is_divided_by_the_workers(toy):
    server = replace(toy, policy=make_policy("asp")).server()
    server.node_teams({0: 3})
    assert server.pull(0) == [Grant(0, Lease(0, 0, 4, 0))]


def test_a_pull_alone_joins(toy):
    server = toy.server()
    assert server.pull(3) == [Grant(3, Lease(0, 0, 4, 0))]


def test_a_worker_that_comes_in_mid_step_counts_from_the_next(toy):
    server = toy.server()
    lease = granted(server.pull(0))[0]
    assert server.joined(1) == []
    assert server.pull(1) == []
    decisions = server.push(0, toy.answer(lease, server.weights))
    assert isinstance(decisions[0], Applied)
    assert decisions[1:] == [Grant(1, Lease(1, 2, 4, 1))]
    assert server.pull(0) == [Grant(0, Lease(1, 0, 2, 1, serial=1))]


def test_who_waits_longest_is_served_first(toy):
    server = toy.server()
    lease = granted(server.pull(0))[0]
    for worker in (3, 1, 2):
        server.pull(worker)
    decisions = server.push(0, toy.answer(lease, server.weights))
    assert list(granted(decisions)) == [3, 1, 2]


def test_a_doubled_pull_of_a_waiting_worker_is_one_pull(toy):
    server = toy.server()
    server.joined(0)
    server.joined(1)
    leases = [granted(server.pull(worker))[worker] for worker in (0, 1)]
    assert server.push(0, toy.answer(leases[0], START)) == []
    assert server.pull(0) == server.pull(0) == []
    decisions = server.push(1, toy.answer(leases[1], START))
    assert list(granted(decisions)) == [0]


def test_who_pulls_again_gets_the_same_lease_again(toy):
    """As a worker does that was restarted under its old number."""
    server = toy.server()
    server.joined(0)
    server.joined(1)
    first, again = (granted(server.pull(0))[0] for _ in range(2))
    assert first == again
    assert granted(server.pull(1))[1] != first


def test_a_push_that_does_not_fit_its_lease_is_dropped_and_loses_nothing(toy):
    server = toy.server()
    server.joined(0)
    lease = granted(server.pull(0))[0]
    good = toy.answer(lease, START)
    for bad in (
        Push(lease, good.losses, good.gradients[:0]),
        Push(lease, good.losses[:1], good.gradients),
    ):
        assert server.push(0, bad) == [Dropped(0, lease)]
    assert isinstance(server.push(0, good)[0], Applied)


# Doubled and late pushes


def test_a_doubled_push_is_used_once(toy):
    server = toy.server()
    server.joined(0)
    server.joined(1)
    lease = granted(server.pull(0))[0]
    push = toy.answer(lease, server.weights)
    assert server.push(0, push) == []
    assert server.push(0, push) == [Dropped(0, lease)]


def test_a_push_doubled_after_the_update_is_dropped(toy):
    server = toy.server()
    lease = granted(server.pull(0))[0]
    push = toy.answer(lease, server.weights)
    server.push(0, push)
    server.pull(0)
    after = server.weights.copy()
    assert server.push(0, push) == [Dropped(0, lease)]
    assert server.weights.tobytes() == after.tobytes()


def test_a_push_that_nobody_was_asked_for_is_dropped(toy):
    server = toy.server()
    server.joined(0)
    server.joined(1)
    server.pull(0)
    for lease in (Lease(0, 2, 4, 0), Lease(0, 0, 1, 0), Lease(1, 0, 2, 1)):
        assert server.push(1, toy.answer(lease, START)) == [Dropped(1, lease)]


def test_shares_of_a_lost_worker_go_to_who_waits(toy):
    server = toy.server()
    server.joined(0)
    server.joined(1)
    lost, kept = granted(server.pull(0))[0], granted(server.pull(1))[1]
    assert server.push(1, toy.answer(kept, START)) == []
    assert server.pull(1) == []
    assert server.lost(0) == [Grant(1, lost._replace(serial=1))]
    decisions = server.push(1, toy.answer(lost, START))
    assert isinstance(decisions[0], Applied)
    assert server.pull(1) == [Grant(1, Lease(1, 0, 4, 1, serial=2))], (
        "the lost one still has a share"
    )


def test_a_late_push_and_that_of_the_successor_are_used_once(toy):
    server = toy.server()
    server.joined(0)
    server.joined(1)
    lost, kept = granted(server.pull(0))[0], granted(server.pull(1))[1]
    server.push(1, toy.answer(kept, START))
    server.lost(0)
    assert server.pull(1) == [Grant(1, lost._replace(serial=1))]
    decisions = server.push(0, toy.answer(lost, START))
    assert isinstance(decisions[0], Applied)
    assert server.push(1, toy.answer(lost, START)) == [Dropped(1, lost)]


def test_a_lost_worker_that_waited_is_given_nothing(toy):
    server = toy.server()
    lease = granted(server.pull(0))[0]
    server.pull(1)
    server.lost(1)
    assert granted(server.push(0, toy.answer(lease, START))) == {}


def test_losing_an_unknown_worker_changes_nothing(toy):
    server = toy.server()
    assert server.lost(9) == []
    assert server.pull(0) == [Grant(0, Lease(0, 0, 4, 0))]


def test_a_fleet_that_died_out_is_followed_by_another(toy):
    fleet = Fleet(toy, toy.server())
    for worker in range(3):
        fleet.join(worker)
    for worker in range(3):
        fleet.pull(worker)
    fleet.answer(1)
    for worker in range(3):
        fleet.lose(worker)
    fleet.join(7)
    fleet.finish(7)
    assert fleet.server.weights.tobytes() == run_alone(toy).server.weights.tobytes()
    assert fleet.used == toy.all_slots()


@pytest.mark.parametrize("policy", [None, make_policy("asp"), make_policy("ssp", staleness=1)])
def test_an_exchange_is_a_push_and_a_pull(toy, policy):
    """Whoever waits is served in the same order."""
    apart, at_once = (replace(toy, policy=policy).server() for _ in range(2))
    order = random.Random(3)
    held: dict[int, Lease] = {}
    for worker in (0, 1, 2):
        at_once.pull(worker)
        held |= granted(apart.pull(worker))
    while held:
        worker = order.choice(sorted(held))
        lease = held.pop(worker)
        answer = toy.answer(lease, apart.weights)
        decisions = apart.push(worker, answer) + apart.pull(worker)
        assert at_once.exchange(worker, answer) == decisions
        held |= granted(decisions)
    assert apart.finished and at_once.finished
    np.testing.assert_array_equal(apart.weights, at_once.weights)
