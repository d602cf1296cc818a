"""Sums along the fixed tree: the same bits however leaves are grouped and in whatever order."""

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.core.reduction_tree import Node, TreeSum, cover, root, shares, shares_by_size, sum_node

SIZE = 7
MOST_SLOTS = 40


def random_leaves(slots, seed):
    """Float32 vectors of very different sizes, so that the order of a sum shows in its bits."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.integers(-3, 4, (slots, 1))
    return (rng.standard_normal((slots, SIZE)) * sizes).astype(np.float32)


def recursive_sum(leaves):
    """The definition: the left half is the largest power of two that leaves a right half."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    return recursive_sum(leaves[:half]) + recursive_sum(leaves[half:])


def share_sums(leaves, first, last):
    """What a worker sends for its share: the nodes that cover it, with their sums."""
    slots, buffer = len(leaves), leaves[first:last].copy()
    return [(node, sum_node(node, buffer, first, slots)) for node in cover(first, last, slots)]


def all_nodes(slots):
    for level in range(root(slots).level + 1):
        for index in range(-(-slots // (1 << level))):
            yield Node(level, index)


def fewest_nodes(first, last, slots):
    """The least number of nodes that tile [first, last), by dynamic programming."""
    ranges = {(node.first, node.last(slots)) for node in all_nodes(slots)}
    fewest = {first: 0}
    for end in range(first + 1, last + 1):
        counts = [fewest[low] + 1 for low, high in ranges if high == end and low in fewest]
        if counts:
            fewest[end] = min(counts)
    return fewest[last]


@st.composite
def slot_ranges(draw):
    slots = draw(st.integers(1, MOST_SLOTS))
    first = draw(st.integers(0, slots - 1))
    return first, draw(st.integers(first + 1, slots)), slots


@st.composite
def groupings(draw):
    """A number of slots, and contiguous shares of them in an order of arrival."""
    slots = draw(st.integers(1, MOST_SLOTS))
    cuts = draw(st.sets(st.integers(1, slots - 1))) if slots > 1 else set()
    edges = [0, *sorted(cuts), slots]
    return slots, draw(st.permutations(list(pairwise(edges))))


@settings(deadline=None, max_examples=500)
@given(slot_ranges())
def test_cover_is_exact(case):
    first, last, slots = case
    nodes = cover(first, last, slots)
    covered = [slot for node in nodes for slot in range(node.first, node.last(slots))]
    assert covered == list(range(first, last))
    assert set(nodes) <= set(all_nodes(slots))


@settings(deadline=None, max_examples=500)
@given(slot_ranges())
def test_cover_is_minimal(case):
    assert len(cover(*case)) == fewest_nodes(*case)


@pytest.mark.parametrize("slots", range(1, MOST_SLOTS + 1))
def test_cover_of_everything_is_the_root(slots):
    assert list(cover(0, slots, slots)) == [root(slots)]


@pytest.mark.parametrize("writeable", [True, False])
def test_what_is_borrowed_is_used_where_it_lies_until_it_is_settled(writeable):
    """What must not be written to is copied."""
    tree = TreeSum(2, 3, "float32")
    vector = np.ones(3, np.float32)
    vector.flags.writeable = writeable
    tree.start(1)
    tree.add(Node(0, 0), vector, borrow=True)
    assert np.shares_memory(tree.total(), vector) == writeable
    tree.settle()
    tree.total()[:] = 7
    assert vector.tolist() == [1, 1, 1]


def test_cover_of_known_ranges():
    assert list(cover(1, 7, 8)) == [Node(0, 1), Node(1, 1), Node(1, 2), Node(0, 6)]
    assert list(cover(4, 7, 7)) == [Node(2, 1)]
    assert list(cover(4, 7, 8)) == [Node(1, 2), Node(0, 6)]
    assert list(cover(3, 3, 8)) == []


@pytest.mark.parametrize(("slots", "level"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3)])
def test_root_covers_all_slots(slots, level):
    assert root(slots) == Node(level, 0)
    assert (root(slots).first, root(slots).last(slots)) == (0, slots)


@settings(deadline=None, max_examples=300)
@given(slot_ranges(), st.integers(0, 2**32))
def test_sum_node_is_the_recursive_sum(case, seed):
    first, last, slots = case
    leaves = random_leaves(slots, seed)
    for node, total in share_sums(leaves, first, last):
        expected = recursive_sum(leaves[node.first : node.last(slots)])
        assert total.tobytes() == expected.tobytes()


@settings(deadline=None, max_examples=500)
@given(groupings(), st.integers(0, 2**32))
def test_same_bits_for_any_grouping_and_order_of_shares(grouping, seed):
    slots, arriving_shares = grouping
    leaves = random_leaves(slots, seed)
    tree = TreeSum(MOST_SLOTS, SIZE, "float32")
    tree.start(slots)
    for first, last in arriving_shares:
        assert not tree.complete
        for node, vector in share_sums(leaves, first, last):
            tree.add(node, vector)
    assert tree.complete
    assert tree.total().tobytes() == recursive_sum(leaves).tobytes()


@settings(deadline=None, max_examples=300)
@given(st.data(), st.integers(1, MOST_SLOTS), st.integers(0, 2**32))
def test_same_bits_when_the_nodes_of_all_shares_arrive_mixed(data, slots, seed):
    leaves = random_leaves(slots, seed)
    workers = data.draw(st.integers(1, 9))
    nodes = [pair for share in shares(slots, workers) for pair in share_sums(leaves, *share)]
    tree = TreeSum(slots, SIZE, "float32")
    tree.start(slots)
    for position in data.draw(st.permutations(range(len(nodes)))):
        tree.add(*nodes[position])
    assert tree.complete
    assert tree.total().tobytes() == recursive_sum(leaves).tobytes()


def test_the_random_leaves_would_show_another_order():
    leaves = random_leaves(8, seed=1)
    assert reduce(np.add, leaves).tobytes() != recursive_sum(leaves).tobytes()
    assert recursive_sum(leaves[::-1]).tobytes() == recursive_sum(leaves).tobytes()
    assert recursive_sum(leaves[[0, 2, 1, 3, 4, 5, 6, 7]]).tobytes() != (
        recursive_sum(leaves).tobytes()
    )


def test_a_new_sum_forgets_the_one_before():
    tree = TreeSum(8, SIZE, "float32")
    for slots in (8, 3, 5, 1):
        tree.start(8)
        tree.add(Node(1, 0), np.full(SIZE, np.nan, dtype=np.float32))
        leaves = random_leaves(slots, seed=slots)
        tree.start(slots)
        for slot, leaf in enumerate(leaves):
            assert not tree.complete
            tree.add(Node(0, slot), leaf)
        assert tree.complete
        assert tree.total().tobytes() == recursive_sum(leaves).tobytes()


def test_add_copies_and_leaves_its_argument_alone():
    leaves, tree = random_leaves(4, seed=0), TreeSum(4, SIZE, "float32")
    tree.start(4)
    for slot, leaf in enumerate(leaves):
        sent = leaf.copy()
        tree.add(Node(0, slot), sent)
        assert sent.tobytes() == leaf.tobytes()
        sent[...] = np.nan
    assert tree.total().tobytes() == recursive_sum(leaves).tobytes()


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 200), st.integers(1, 50))
def test_shares_tile_the_slots_and_are_balanced(slots, workers):
    cut = shares(slots, workers)
    assert [slot for share in cut for slot in range(*share)] == list(range(slots))
    assert len(cut) == min(slots, workers)
    lengths = [last - first for first, last in cut]
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 1


@given(slots=st.integers(1, 20), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_shares_by_size_are_those_of_workers_made_one(slots, sizes):
    """In order, without a gap; with a slot for each worker, none is left without one."""
    sizes = sorted(sizes, reverse=True)
    found = shares_by_size(slots, tuple(sizes))
    bounds = {last for _, last in shares(slots, sum(sizes))}
    assert [first for first, _ in found] == [0, *(last for _, last in found[:-1])]
    assert found[-1][1] == slots and {last for _, last in found} <= bounds
    if sum(sizes) <= slots:
        assert len(found) == len(sizes)
        for size, (first, last) in zip(sizes, found, strict=True):
            assert abs(last - first - slots * size / sum(sizes)) < 1
    if set(sizes) == {1}:
        assert found == shares(slots, len(sizes))


@pytest.mark.parametrize(("first", "last"), [(0, 13), (0, 8), (5, 12), (8, 13), (3, 4)])
def test_the_sums_of_a_part_are_those_that_its_owner_would_send(first, last):
    leaves = random_leaves(13, 3)
    tree = TreeSum(13, SIZE, "float32")
    tree.start(13)
    middle = (first + last) // 2
    for low, high in ((middle, last), (first, middle)):
        for node, vector in share_sums(leaves, low, high):
            tree.add(node, vector, borrow=True)
    found = tree.sums(cover(first, last, 13))
    assert [vector.tobytes() for vector in found] == [
        vector.tobytes() for _, vector in share_sums(leaves, first, last)
    ]
