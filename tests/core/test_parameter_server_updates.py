"""The parameter server: what an update is, and that it has the same bits whoever computed it."""

import math
import random

import numpy as np
import pytest
from plain_server import plain_server, run_one_step
from toy_fleet import (
    PARAMETERS,
    START,
    Fleet,
    Toy,
    granted,
    run_alone,
    run_in_turn,
    toy_plan,
    what_was_applied,
)

from distsgd.core.messages import Applied
from distsgd.core.optim import Schedule

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


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize(("batch_size", "slot_size"), [(16, 4), (16, 16), (10, 3), (7, 2)])
def test_the_learning_rate_does_not_depend_on_workers_or_cuts(workers, batch_size, slot_size):
    plan = toy_plan(examples=32, batch_size=batch_size, slot_size=slot_size)
    server = plain_server(plan)
    applied = run_one_step(server, plan, workers, value=6.0)
    assert server.weights[0] == pytest.approx(-0.5 * 6.0, rel=1e-15)
    expected = Applied(0, 0, 1, 1.0, plan.slots(0), batch_size, 0.5, (), (), batch_size == 32)
    assert applied._replace(contributions=()) == expected


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
