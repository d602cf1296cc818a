"""Shuffling shard by shard: each example once an epoch, a few shards at a time."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.plan import EpochOrder, Plan


@st.composite
def shard_plans(draw):
    shards = tuple(draw(st.lists(st.integers(1, 30), min_size=1, max_size=9)))
    return Plan(
        seed=draw(st.integers(0, 2**32)),
        sampling="shuffle",
        examples=sum(shards),
        batch_size=draw(st.integers(1, sum(shards))),
        slot_size=draw(st.integers(1, 12)),
        epochs=2,
        shards=shards,
        window=draw(st.integers(1, 10)),
    )


@given(shard_plans())
def test_each_example_once_an_epoch_from_the_shards_of_its_window(plan):
    starts = np.cumsum([0, *plan.shards])
    for epoch in range(plan.epochs):
        order, windows = plan.order(epoch), plan.windows(epoch)
        assert sorted(order) == list(range(plan.examples))
        assert sorted(shard for window in windows for shard in window.shards) == list(
            range(len(plan.shards))
        )
        assert [window.low for window in windows[1:]] == [window.high for window in windows[:-1]]
        for window in windows:
            owners = np.searchsorted(starts, order[window.low : window.high], side="right") - 1
            assert set(owners) == set(window.shards) and len(window.shards) <= plan.window


@given(shard_plans(), st.data())
def test_looked_up_piece_by_piece_it_is_the_same_order(plan, data):
    looked_up = EpochOrder(plan)
    for _ in range(8):
        epoch = data.draw(st.integers(0, 1))
        low = data.draw(st.integers(0, plan.examples - 1))
        high = data.draw(st.integers(low + 1, plan.examples))
        found = looked_up.examples(epoch, low, high)
        assert np.array_equal(found, plan.order(epoch)[low:high])
        window = looked_up.window_at(epoch, low)
        assert plan.windows(epoch)[window].low <= low < plan.windows(epoch)[window].high
        needed = looked_up.shards_from(epoch, window)
        assert needed[0] == plan.windows(epoch)[window].shards[0]
        assert set(needed[: len(plan.shards)]) <= set(range(len(plan.shards)))


def test_epochs_and_windows_differ_and_the_bits_are_pinned():
    plan = Plan(
        seed=5, sampling="shuffle", examples=4_000, batch_size=256, slot_size=64, epochs=2,
        shards=(500,) * 8, window=2,
    )  # fmt: skip
    orders = [plan.order(0), plan.order(1)]
    assert not np.array_equal(*orders)
    assert plan.windows(0) != plan.windows(1)
    windows = plan.windows(0)
    one, two = (plan.window_order(0, number, windows[number]) % 500 for number in (0, 1))
    assert not np.array_equal(one, two)
    digest = hashlib.sha256(np.concatenate(orders).astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "fdefbdf0cd80a515"
