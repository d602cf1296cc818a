"""The parameter server: how a run ends, finished, stopped or diverged."""

import math

import numpy as np
import pytest
from plain_server import constant_push, plain_server
from toy_fleet import START, Fleet, Toy, granted, run_alone, toy_plan

from distsgd.core.messages import Applied, Dismiss, Diverged, Dropped, Push
from distsgd.core.model import SlotLoss

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


def with_losses(push, *losses):
    return Push(push.lease, tuple(SlotLoss(loss, 0, 1) for loss in losses), push.gradients)


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


def test_an_update_that_overflows_diverges():
    plan = toy_plan(examples=4, batch_size=4, slot_size=4, epochs=1)
    server = plain_server(plan, learning_rate=1e300)
    lease = granted(server.pull(0))[0]
    with np.errstate(over="ignore"):
        (decision, *_) = server.push(0, constant_push(plan, lease, 1e20))
    assert isinstance(decision, Diverged)
    assert server.stopped
