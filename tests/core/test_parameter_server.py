"""The parameter server, one situation at a time."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from toy_fleet import (
    PARAMETERS,
    START,
    Fleet,
    Toy,
    run_alone,
    run_in_turn,
    toy_plan,
    what_was_applied,
)

from distsgd.core.messages import Applied, Dismiss, Diverged, Dropped, Grant, Lease, Push
from distsgd.core.optimizers import make_optimizer
from distsgd.core.parameter_server import ParameterServer
from distsgd.core.reduction_tree import cover, sum_node
from distsgd.core.schedules import Schedule
from distsgd.core.slot_gradient import SlotLoss


@pytest.fixture
def toy():
    return Toy(toy_plan())


def granted(decisions):
    """The leases that were granted, by worker."""
    return {d.worker: d.lease for d in decisions if isinstance(d, Grant)}


def with_losses(push, *losses):
    return Push(push.lease, tuple(SlotLoss(loss, 0, 1) for loss in losses), push.gradients)


# Same bits


def test_a_run_alone_equals_plain_momentum_sgd(toy):
    """In float64: mean of the examples' gradients, plus decay * W, through the update rule."""
    plan, schedule = toy.plan, Schedule(name="cosine", learning_rate=0.05, total=6)
    weights, velocity = START.astype(np.float64), np.zeros(PARAMETERS)
    for step in range(plan.total_steps):
        rounded = weights.astype(np.float32)
        parts = [toy.gradient(rounded, step, slot) for slot in range(plan.slots(step))]
        gradient = np.sum(parts, axis=0, dtype=np.float64) / plan.batch_examples(step)
        gradient += np.linspace(0, 0.1, PARAMETERS) * weights
        velocity = 0.9 * velocity + gradient
        weights = weights - schedule.at(step) * velocity
    np.testing.assert_allclose(run_alone(toy).server.weights, weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8, 40])
@pytest.mark.parametrize(
    ("batch_size", "slot_size"), [(10, 3), (23, 1), (23, 2), (7, 7), (5, 64), (1, 1)]
)
def test_same_bits_for_any_number_of_workers(workers, batch_size, slot_size):
    toy = Toy(toy_plan(batch_size=batch_size, slot_size=slot_size))
    expected, fleet = run_alone(toy), run_in_turn(toy, workers)
    assert fleet.server.weights.tobytes() == expected.server.weights.tobytes()
    assert what_was_applied(fleet) == what_was_applied(expected)
    assert fleet.used == toy.all_slots()


@pytest.mark.parametrize("seed", range(5))
def test_same_bits_and_losses_for_any_order_of_arrival(seed):
    toy = Toy(toy_plan(batch_size=23, slot_size=1))
    shuffle = random.Random(seed)
    fleet = run_in_turn(toy, 9, order=lambda busy: shuffle.sample(busy, len(busy)))
    expected = run_alone(toy)
    assert what_was_applied(fleet) == what_was_applied(expected)
    assert fleet.server.weights.tobytes() == expected.server.weights.tobytes()


def test_the_toy_would_show_another_order_of_sums():
    toy = Toy(toy_plan(batch_size=23, slot_size=1))
    gradients = [toy.gradient(START, 0, slot) for slot in range(23)]
    assert sum(gradients).tobytes() != sum(gradients[::-1]).tobytes()
    losses = [toy.loss(START, 0, slot).loss for slot in range(23)]
    assert sum(losses) != sum(losses[::-1])


@pytest.mark.parametrize("version", range(7))
def test_a_server_started_at_a_version_goes_on_with_the_same_bits(version):
    toy = Toy(toy_plan(), optimizer="sgd")
    first = Fleet(toy, toy.server())
    first.join(0)
    while first.server.version < version:
        first.pull(0)
        first.answer(0)
    resumed = Fleet(toy, toy.server(version, first.server.weights))
    resumed.join(0)
    resumed.finish(0)
    expected = run_alone(toy)
    assert resumed.server.weights.tobytes() == expected.server.weights.tobytes()
    applied = what_was_applied(first) + what_was_applied(resumed)
    assert applied == what_was_applied(expected)


# The mean over examples


def constant_push(plan, lease, value, dtype="float64"):
    """Every example of the lease has the gradient ``value`` and the loss 1."""
    slots = plan.slots(lease.step)
    counts = [high - low for low, high in (plan.slot(lease.step, slot) for slot in range(slots))]
    gradients = np.array([np.full(1, value * count, dtype) for count in counts])
    nodes = cover(lease.first, lease.last, slots)
    sums = np.array([sum_node(node, gradients, 0, slots) for node in nodes])
    own = counts[lease.first : lease.last]
    return Push(lease, tuple(SlotLoss(float(count), 1, count) for count in own), sums)


def plain_server(plan, learning_rate=0.5, decay=0.0, weight=0.0):
    weights = np.array([weight])
    return ParameterServer(
        weights, decay=np.array([decay]), optimizer=make_optimizer("sgd", weights, 0.0),
        schedule=Schedule(name="constant", learning_rate=learning_rate, total=plan.total_steps),
        plan=plan,
    )  # fmt: skip


def run_one_step(server, plan, workers, value):
    for worker in range(workers):
        server.joined(worker)
    leases = {}
    for worker in range(workers):
        leases.update(granted(server.pull(worker)))
    pushes = [(worker, constant_push(plan, lease, value)) for worker, lease in leases.items()]
    return [server.push(worker, push) for worker, push in pushes][-1][0]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize(("batch_size", "slot_size"), [(16, 4), (16, 16), (10, 3), (7, 2)])
def test_the_learning_rate_does_not_depend_on_workers_or_cuts(workers, batch_size, slot_size):
    plan = toy_plan(examples=32, batch_size=batch_size, slot_size=slot_size)
    server = plain_server(plan)
    applied = run_one_step(server, plan, workers, value=6.0)
    assert server.weights[0] == pytest.approx(-0.5 * 6.0, rel=1e-15)
    expected = Applied(0, 0, 1, 1.0, plan.slots(0), batch_size, 0.5, (), (), batch_size == 32)
    assert replace(applied, contributions=()) == expected


def test_the_penalty_is_not_divided_by_the_examples():
    plan = toy_plan()
    server = plain_server(plan, decay=0.2, weight=10.0)
    run_one_step(server, plan, 2, value=0.0)
    assert server.weights[0] == pytest.approx(10.0 - 0.5 * 0.2 * 10.0, rel=1e-15)


def test_each_step_has_its_own_learning_rate(toy):
    schedule = Schedule(name="cosine", learning_rate=0.05, total=toy.plan.total_steps)
    assert [a.learning_rate for a in run_alone(toy).applied] == [schedule.at(s) for s in range(6)]


def test_losses_and_hits_are_those_of_the_minibatch(toy):
    server = toy.server()
    lease = granted(server.pull(0))[0]
    push = toy.answer(lease, server.weights)
    applied = server.push(0, push)[0]
    assert applied.loss == math.fsum(part.loss for part in push.losses) / 10
    assert applied.correct == sum(part.correct for part in push.losses)
    assert applied.examples == 10


# Shares


def test_a_step_is_cut_into_a_share_for_each_worker(toy):
    server = toy.server()
    for worker in (5, 6, 7):
        assert server.joined(worker) == []
    assert server.pull(6) == [Grant(6, Lease(0, 0, 1, 0))]
    assert server.pull(5) == [Grant(5, Lease(0, 1, 2, 0))]
    assert server.pull(7) == [Grant(7, Lease(0, 2, 4, 0))]


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
    assert decisions[1:] == [Grant(1, Lease(1, 0, 2, 1))]
    assert server.pull(0) == [Grant(0, Lease(1, 2, 4, 1))]


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


def test_an_update_that_overflows_diverges():
    plan = toy_plan(examples=4, batch_size=4, slot_size=4, epochs=1)
    server = plain_server(plan, learning_rate=1e300)
    lease = granted(server.pull(0))[0]
    with np.errstate(over="ignore"):
        (decision, *_) = server.push(0, constant_push(plan, lease, 1e20))
    assert isinstance(decision, Diverged)
    assert server.stopped


def test_weights_change_only_when_all_slots_are_there(toy):
    fleet = Fleet(toy, toy.server())
    for worker in range(3):
        fleet.join(worker)
    for worker in range(3):
        fleet.pull(worker)
    for worker in (2, 0):
        fleet.answer(worker)
        assert fleet.server.weights.tobytes() == START.tobytes()
        assert fleet.server.version == 0
    fleet.answer(1)
    assert fleet.server.version == 1
    assert fleet.server.weights.tobytes() != START.tobytes()


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
    assert server.lost(0) == [Grant(1, lost)]
    decisions = server.push(1, toy.answer(lost, START))
    assert isinstance(decisions[0], Applied)
    assert server.pull(1) == [Grant(1, Lease(1, 0, 4, 1))], "the lost one still has a share"


def test_a_late_push_and_that_of_the_successor_are_used_once(toy):
    server = toy.server()
    server.joined(0)
    server.joined(1)
    lost, kept = granted(server.pull(0))[0], granted(server.pull(1))[1]
    server.push(1, toy.answer(kept, START))
    server.lost(0)
    assert server.pull(1) == [Grant(1, lost)]
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


# The end


def test_a_finished_server_dismisses_and_drops(toy):
    fleet = run_alone(toy)
    server, final = fleet.server, fleet.server.weights.copy()
    assert server.finished
    assert server.stopped
    assert server.version == toy.plan.total_steps
    assert server.pull(0) == [Dismiss(0)]
    assert server.pull(8) == [Dismiss(8)]
    assert server.joined(9) == []
    for worker, push in fleet.sent:
        assert server.push(worker, push) == [Dropped(worker, push.lease)]
    assert server.weights.tobytes() == final.tobytes()


def test_the_last_update_dismisses_who_waits():
    toy = Toy(toy_plan(examples=4, batch_size=4, slot_size=2, epochs=1))
    server = toy.server()
    lease = granted(server.pull(0))[0]
    server.pull(1)
    decisions = server.push(0, toy.answer(lease, START))
    assert isinstance(decisions[0], Applied)
    assert decisions[1:] == [Dismiss(1)]


def test_a_run_of_no_epochs_is_finished_at_once():
    server = Toy(toy_plan(epochs=0)).server()
    assert server.finished
    assert server.pull(0) == [Dismiss(0)]


def test_stop_dismisses_all_and_keeps_the_last_whole_update(toy):
    server = toy.server()
    server.joined(0)
    server.joined(1)
    leases = [granted(server.pull(0))[0], granted(server.pull(1))[1]]
    server.pull(2)
    server.pull(3)
    server.push(0, toy.answer(leases[0], START))
    assert server.stop() == [Dismiss(2), Dismiss(3)]
    assert server.push(1, toy.answer(leases[1], START)) == [Dropped(1, leases[1])]
    assert server.pull(0) == [Dismiss(0)]
    assert server.pull(1) == [Dismiss(1)]
    assert server.lost(1) == []
    assert server.stop() == []
    assert server.stopped
    assert not server.finished
    assert (server.version, server.weights.tobytes()) == (0, START.tobytes())


# Divergence

NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("bad_first", [True, False])
def test_a_loss_that_is_not_finite_diverges_and_leaves_all_untouched(toy, bad, bad_first):
    server = toy.server()
    server.joined(0)
    server.joined(1)
    leases = [granted(server.pull(0))[0], granted(server.pull(1))[1]]
    server.pull(2)
    pushes = [
        with_losses(toy.answer(leases[0], START), 1.0, bad),
        with_losses(toy.answer(leases[1], START), 1.0, 2.0),
    ]
    order = (0, 1) if bad_first else (1, 0)
    assert server.push(order[0], pushes[order[0]]) == []
    diverged, *others = server.push(order[1], pushes[order[1]])
    assert isinstance(diverged, Diverged)
    assert (diverged.step, diverged.learning_rate) == (0, 0.05)
    assert not math.isfinite(diverged.loss)
    assert others == [Dismiss(2)]
    assert (server.version, server.weights.tobytes()) == (0, START.tobytes())
    assert not server.optimizer.state["velocity"].any()


def test_after_divergence_there_is_no_more_work(toy):
    server = toy.server()
    lease = granted(server.pull(0))[0]
    push = toy.answer(lease, START)
    server.push(0, with_losses(push, 1.0, math.nan, 1.0, 1.0))
    assert server.stopped
    assert not server.finished
    assert server.pull(0) == [Dismiss(0)]
    assert server.push(0, push) == [Dropped(0, lease)]
    assert server.joined(1) == []
    assert server.pull(1) == [Dismiss(1)]
    assert server.weights.tobytes() == START.tobytes()


def test_a_finite_loss_of_slots_that_overflows_together_diverges(toy):
    server = toy.server()
    lease = granted(server.pull(0))[0]
    push = with_losses(toy.answer(lease, START), 1e308, 1e308, 1e308, 1e308)
    diverged = server.push(0, push)[0]
    assert isinstance(diverged, Diverged)
    assert diverged.loss == math.inf


def test_infinite_losses_of_both_signs_diverge(toy):
    server = toy.server()
    lease = granted(server.pull(0))[0]
    push = with_losses(toy.answer(lease, START), math.inf, -math.inf, 1.0, math.nan)
    assert isinstance(server.push(0, push)[0], Diverged)


def test_divergence_in_a_later_step_keeps_the_updates_before(toy):
    fleet = Fleet(toy, toy.server())
    fleet.join(0)
    for _ in range(3):
        fleet.pull(0)
        fleet.answer(0)
    before = fleet.server.weights.copy()
    lease = granted(fleet.server.pull(0))[0]
    push = with_losses(toy.answer(lease, before), *[math.inf] * (lease.last - lease.first))
    assert isinstance(fleet.server.push(0, push)[0], Diverged)
    assert (fleet.server.version, fleet.server.weights.tobytes()) == (3, before.tobytes())
