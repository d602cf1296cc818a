"""Every policy under random schedules: `crew_account` has what is checked, and when.

`--schedules N` plays N schedules of each policy. One that fails is named by its seed; it is
played again by `drive(name, random.Random(seed))`, and found in a shorter form by hypothesis.
"""

import random
from collections import Counter

import crew_account
import numpy as np
import pytest
from any_schedule import drive
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from promises import PROMISES
from toy_fleet import START, Toy, toy_plan

from distsgd.core.messages import Grant
from distsgd.core.server import parameter_server
from distsgd.core.server.consistency import POLICIES, make_policy

each_policy = pytest.mark.parametrize("name", POLICIES)


@pytest.fixture(scope="module", autouse=True)
def trees_are_counted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parameter_server, "TreeSum", crew_account.CountedTree)
        yield


def seeds(name, count):
    return (f"{name} {number}" for number in range(count))


@each_policy
def test_a_policy_keeps_its_promises_under_any_schedule(name, pytestconfig):
    for seed in seeds(name, pytestconfig.getoption("schedules")):
        try:
            drive(name, random.Random(seed))
        except Exception as error:
            error.add_note(f"drive({name!r}, random.Random({seed!r}))")
            raise


@each_policy
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(chance=st.randoms(use_true_random=False))
def test_and_under_the_shortest_that_breaks_them(name, chance):
    drive(name, chance)


@each_policy
def test_the_schedules_reach_what_they_are_made_for(name):
    """Late answers; the staleness that is promised to be the most; what is put off."""
    crews = [drive(name, random.Random(seed)) for seed in seeds(name, 300)]
    seen = sum((crew.seen for crew in crews), Counter())
    promises = [crew.promise for crew in crews]
    stalest = max(key[1] for key in seen if key[0] == "staleness")
    bounds = {promise.staleness for promise in promises}
    assert seen["dropped"] > 300
    assert stalest > 3 if bounds == {None} else stalest == max(bounds)
    assert (seen["own place"] > 50) == any(promise.staleness for promise in promises)
    assert (seen["requeued"] > 100) == any(promise.backup for promise in promises)
    assert (seen["as bsp"] > 30) == any(promise.is_bsp for promise in promises)
    variants = {"ssp": 6, "backup": 4, "local": 4 * 6}.get(name, 1)
    assert len({crew.toy.policy for crew in crews}) == variants


def test_every_policy_has_its_promise():
    assert set(PROMISES) == set(POLICIES)


@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_local_steps_end_in_the_mean_of_the_replicas_over_examples(replicas):
    toy = Toy(toy_plan(), "sgd", make_policy("local", local_steps=3, replicas=replicas))
    server, after, examples = toy.server(), [], []
    for _ in range(min(replicas, toy.plan.slots(0))):
        (grant,) = server.pull(0)
        assert isinstance(grant, Grant)
        weights, losses = toy.replica(grant.lease, START)
        after.append(weights.astype(np.float64))
        examples.append(sum(loss.examples for loss in losses))
        server.push(0, toy.answer(grant.lease, START))
    assert server.version == 1
    assert sum(examples) == toy.plan.examples
    expected = np.average(after, axis=0, weights=examples)
    np.testing.assert_allclose(server.weights, expected, rtol=1e-5, atol=1e-6)
