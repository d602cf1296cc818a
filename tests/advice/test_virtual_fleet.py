"""The virtual fleet takes what arithmetic says that it takes."""

import pytest

from distsgd.advice.virtual_fleet import Costs, Member, seconds_of_update
from distsgd.core.plan import Plan
from distsgd.core.server.consistency import make_policy

KERNEL = 1e-5  # seconds an example


def plan_of(batch):
    return Plan(
        seed=0, sampling="sequential", examples=batch * 400, batch_size=batch, slot_size=64,
        epochs=1,
    )  # fmt: skip


def update(policy, members, costs, batch=256, **more):
    made = make_policy(policy, replicas=len(members), **more)
    return seconds_of_update(plan_of(batch), made, members, costs)


def member(**more):
    return Member(lambda examples: KERNEL * examples, **more)


COSTS = Costs(cores=8, push=1e-4, update=2e-4)


def test_one_worker_waits_for_the_server():
    found = update("bsp", [member(away=5e-5)], COSTS)
    assert found == pytest.approx(256 * KERNEL + 1e-4 + 2e-4 + 2 * 5e-5)


def test_two_workers_halve_the_computing_and_double_the_pushes():
    found = update("bsp", [member(), member()], COSTS)
    assert found == pytest.approx(128 * KERNEL + 2e-4 + 2e-4)


def test_two_workers_on_one_core_take_turns():
    found = update("bsp", [member(), member()], Costs(cores=1, push=0.0, update=0.0))
    assert found == pytest.approx(256 * KERNEL)


def test_crowded_cores_are_slower():
    found = update("bsp", [member(), member()], Costs(cores=2, push=0, update=0, crowd=1.5))
    assert found == pytest.approx(1.5 * 128 * KERNEL)


def test_a_slow_worker_delays_bsp_but_not_asp():
    members = [member(slowness=4.0), *[member()] * 3]
    costs = Costs(cores=8, push=0, update=0)
    slow, even = update("bsp", members, costs), update("bsp", [member()] * 4, costs)
    assert slow > 1.2 * even
    rate = 3 + 1 / 4
    assert update("asp", members, costs) == pytest.approx(256 * KERNEL / rate, rel=0.1)


def test_the_server_bounds_asp():
    costs = Costs(cores=16, push=1e-3, update=1e-3)
    assert update("asp", [member()] * 12, costs) == pytest.approx(2e-3, rel=0.05)


def test_local_steps_push_once_a_round():
    found = update("local", [member(away=1e-2)] * 2, COSTS, local_steps=8)
    assert found == pytest.approx(8 * 128 * KERNEL + 2e-2 + 2e-4 + 2e-4, rel=0.05)
