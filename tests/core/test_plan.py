"""The plan: which examples make up every minibatch and slot, whoever computes them."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.core.plan import SAMPLINGS, EpochOrder, Plan, validation_rows

CIFAR_EXAMPLES = 50_000


def make_plan(**changes):
    values = {
        "seed": 0,
        "sampling": "shuffle",
        "examples": 23,
        "batch_size": 8,
        "slot_size": 3,
        "epochs": 2,
    }
    return Plan(**{**values, **changes})


def cifar_plan(sampling, seed=0):
    return make_plan(
        sampling=sampling, seed=seed, examples=CIFAR_EXAMPLES, batch_size=256, slot_size=64
    )


@st.composite
def plans(draw, samplings=SAMPLINGS):
    examples = draw(st.integers(1, 120))
    return make_plan(
        seed=draw(st.integers(0, 2**32)),
        sampling=draw(st.sampled_from(samplings)),
        examples=examples,
        batch_size=draw(st.integers(1, examples)),
        slot_size=draw(st.integers(1, 40)),
        epochs=draw(st.integers(1, 3)),
    )


def examples_of_epoch(plan, epoch):
    """Every example that the slots of an epoch name, in order."""
    first = epoch * plan.steps_per_epoch
    steps = range(first, first + plan.steps_per_epoch)
    return np.concatenate([plan.indices(s, slot) for s in steps for slot in range(plan.slots(s))])


@settings(deadline=None, max_examples=200)
@given(plans(samplings=("shuffle", "sequential")))
def test_every_example_is_used_exactly_once_an_epoch(plan):
    for epoch in range(plan.epochs):
        assert sorted(examples_of_epoch(plan, epoch)) == list(range(plan.examples))


@pytest.mark.parametrize("sampling", ["shuffle", "sequential"])
@pytest.mark.parametrize(
    ("examples", "batch_size", "slot_size"),
    [(23, 7, 3), (24, 8, 8), (23, 23, 5), (23, 1, 1), (23, 1, 64), (23, 8, 64), (1, 1, 1)],
)
def test_every_example_is_used_exactly_once_at_the_edges(sampling, examples, batch_size, slot_size):
    plan = make_plan(
        sampling=sampling, examples=examples, batch_size=batch_size, slot_size=slot_size
    )
    assert sorted(examples_of_epoch(plan, 1)) == list(range(examples))


@settings(deadline=None, max_examples=200)
@given(plans())
def test_slots_of_a_step_tile_its_minibatch(plan):
    for step in range(plan.total_steps):
        low, high = plan.minibatch(step)
        slots = [plan.slot(step, slot) for slot in range(plan.slots(step))]
        assert [position for slot in slots for position in range(*slot)] == list(range(low, high))
        assert all(end - start == plan.slot_size for start, end in slots[:-1])
        assert 0 < slots[-1][1] - slots[-1][0] <= plan.slot_size
        assert plan.batch_examples(step) == high - low
        assert plan.slots(step) <= plan.most_slots


@settings(deadline=None, max_examples=200)
@given(plans())
def test_minibatches_are_full_except_the_last_of_an_epoch(plan):
    for step in range(plan.total_steps):
        if plan.ends_epoch(step):
            assert plan.minibatch(step)[1] == plan.examples
        else:
            assert plan.batch_examples(step) == plan.batch_size


def test_steps_are_counted_over_the_whole_run():
    plan = make_plan(examples=23, batch_size=8, epochs=2)
    assert (plan.steps_per_epoch, plan.total_steps) == (3, 6)
    assert [plan.epoch_of(step) for step in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [step for step in range(6) if plan.ends_epoch(step)] == [2, 5]
    assert [plan.minibatch(step) for step in range(3, 6)] == [(0, 8), (8, 16), (16, 23)]
    assert [plan.slots(step) for step in range(3)] == [3, 3, 3]
    assert plan.slot(2, 2) == (22, 23)


def test_sequential_takes_the_examples_as_they_are_stored():
    plan = make_plan(sampling="sequential")
    assert plan.order(0).tolist() == plan.order(1).tolist() == list(range(plan.examples))


@settings(deadline=None, max_examples=200)
@given(plans(samplings=("random",)))
def test_random_stays_in_range(plan):
    order = plan.order(0)
    assert order.shape == (plan.examples,)
    assert order.min() >= 0
    assert order.max() < plan.examples


def test_random_misses_the_expected_share_of_the_examples():
    """(1 - 1/n)**n = 36.8 %; the standard deviation of this share is 0.14 % at n = 50,000."""
    missed = 1 - len(np.unique(cifar_plan("random").order(0))) / CIFAR_EXAMPLES
    assert missed == pytest.approx(np.exp(-1), abs=0.006)


@pytest.mark.parametrize("sampling", ["shuffle", "random"])
def test_orders_differ_between_epochs_and_seeds(sampling):
    orders = [
        tuple(cifar_plan(sampling, seed).order(epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)
    ]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("sampling", ["shuffle", "random"])
def test_another_epoch_is_another_order_and_not_a_shift_of_it(sampling):
    plan = cifar_plan(sampling)
    first, second = plan.order(0), plan.order(1)
    assert np.mean(first == second) < 0.001
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert abs(np.corrcoef(first, np.arange(CIFAR_EXAMPLES))[0, 1]) < 0.03


@settings(deadline=None, max_examples=100)
@given(plans(), st.integers(0, 5))
def test_equal_plans_give_equal_orders(plan, epoch):
    twin = make_plan(**vars(plan))
    assert plan.order(epoch).tolist() == twin.order(epoch).tolist()


@settings(deadline=None, max_examples=100)
@given(plans(), st.integers(1, 40), st.integers(1, 120))
def test_the_order_does_not_depend_on_batches_and_slots(plan, slot_size, batch_size):
    recut = make_plan(**{**vars(plan), "slot_size": slot_size, "batch_size": batch_size})
    assert plan.order(0).tolist() == recut.order(0).tolist()


GOLDEN = {
    "shuffle": (
        [3705, 22828, 1347, 32302, 31749, 24950, 2226, 48545],
        "4482b8fbf8025b463cd272daa4cb4962eb62d89426a09f1ad5cefde9eb71b7e7",
    ),
    "random": (
        [24549, 780, 41886, 2278, 40722, 12322, 781, 13692],
        "912526b7caa33d67fbda6c9b018b0a8cbdde02384e3b7e86c5dcd21076cbc240",
    ),
}


@pytest.mark.parametrize("sampling", GOLDEN)
def test_golden_order_of_seed_0(sampling):
    """If this fails, runs recorded by earlier versions can no longer be replayed."""
    order = cifar_plan(sampling).order(0)
    first, digest = GOLDEN[sampling]
    assert order[:8].tolist() == first
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest() == digest


def test_rows_held_out_are_a_share_of_each_class_and_in_no_minibatch():
    labels = np.repeat(np.arange(5), [100, 37, 10, 2, 1])
    labels = labels[np.random.default_rng(1).permutation(150)]
    held = validation_rows(3, 0.2, 150, labels)
    assert np.array_equal(held, validation_rows(3, 0.2, 150, labels))
    assert not np.array_equal(held, validation_rows(4, 0.2, 150, labels))
    assert len(held) == 30 and (np.diff(held) > 0).all()
    counts = np.bincount(labels[held], minlength=5)
    assert np.abs(counts - 0.2 * np.bincount(labels)).max() <= 1
    assert counts[4] == 0  # the only one of its class
    assert len(validation_rows(3, 0.2, 150)) == 30
    for sampling, shards in (("shuffle", ()), ("shuffle", (70, 50)), ("sequential", ())):
        plan = Plan(
            seed=3, sampling=sampling, examples=120, batch_size=32, slot_size=8, epochs=2,
            shards=shards, window=1, held_out=held,
        )  # fmt: skip
        for epoch in range(2):
            assert sorted([*plan.order(epoch), *held]) == list(range(150))
            found = EpochOrder(plan).examples(epoch, 60, 100)
            assert np.array_equal(found, plan.order(epoch)[60:100])
