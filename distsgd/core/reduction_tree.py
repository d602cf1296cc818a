"""Sums along one fixed binary tree, so that the order of arrival cannot change a bit.

The leaves are the slots 0..n-1 of a minibatch. The node (level, number) covers the slots
[number * 2**level, (number + 1) * 2**level), cut off at n. Its sum is left + right, or left alone
where the right half is empty. A worker that owns every slot of a node may send the node's sum.
"""

from __future__ import annotations

from functools import cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from distsgd.core.arrays import Floats

__all__ = ["Node", "TreeSum", "cover", "root", "shares", "shares_by_size", "sum_node"]


class Node(NamedTuple):
    """One node of the tree.

    Attributes:
        level: 0 for a leaf.
        number: position among the nodes of its level.
    """

    level: int
    number: int

    @property
    def first(self) -> int:
        """The first slot below this node."""
        return self.number << self.level

    def last(self, slots: int) -> int:
        """One past the last slot below this node, of a tree of ``slots`` leaves."""
        return min((self.number + 1) << self.level, slots)


@cache
def root(slots: int) -> Node:
    """The root of a tree of ``slots`` leaves."""
    return Node((slots - 1).bit_length(), 0)


@cache
def cover(first: int, last: int, slots: int) -> tuple[Node, ...]:
    """The fewest nodes that together cover exactly the slots [first, last), left to right."""
    nodes = []
    while first < last:
        level = 0
        while first % (2 << level) == 0:
            wider = Node(level + 1, first >> (level + 1))
            if wider.last(slots) > last or level + 1 > root(slots).level:
                break
            level += 1
        nodes.append(Node(level, first >> level))
        first = nodes[-1].last(slots)
    return tuple(nodes)


@cache
def shares(slots: int, workers: int) -> tuple[tuple[int, int], ...]:
    """Cut the slots into at most ``workers`` contiguous ranges of nearly equal length."""
    parts = min(slots, workers)
    return tuple((slots * i // parts, slots * (i + 1) // parts) for i in range(parts))


@cache
def shares_by_size(slots: int, sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Cut the slots into contiguous ranges in proportion to these sizes; none is empty.

    Its boundaries are among those of `shares`, for as many workers as the sizes add up to.
    """
    bounds = [slots * before // sum(sizes) for before in accumulate(sizes, initial=0)]
    return tuple((low, high) for low, high in pairwise(bounds) if low < high)


class _Step(NamedTuple):
    """The way up from a node: its parent, and the two halves of that; None for an empty one."""

    parent: Node
    left: Node
    right: Node | None


@cache
def _up(node: Node, slots: int) -> _Step | None:
    """The way up from a node of a tree of ``slots`` leaves; None from the root."""
    if node == root(slots):
        return None
    left = Node(node.level, node.number & ~1)
    right = Node(node.level, left.number + 1)
    parent = Node(node.level + 1, node.number >> 1)
    return _Step(parent, left, right if right.first < slots else None)


def sum_node(node: Node, gradients: Floats, first: int, slots: int) -> Floats:
    """The sum of the leaves below a node, along the tree.

    Args:
        node: the node.
        gradients: shape (k, ...): the leaves first, first + 1, ...; overwritten.
        first: the slot of gradients[0].
        slots: leaves of the whole tree.

    Returns:
        a view of the first leaf's place, which now holds the sum.
    """
    low, high = node.first - first, node.last(slots) - first
    stride = 1
    while stride < high - low:
        for left in range(low, high - stride, 2 * stride):
            np.add(gradients[left], gradients[left + stride], out=gradients[left])
        stride *= 2
    place: Floats = gradients[low]
    return place


class TreeSum:
    """Collects node sums in any order and adds them along the tree.

    Args:
        most_slots: the largest number of leaves it will be used for.
        size: length of the flat vectors that are added.
        dtype: their dtype.
    """

    def __init__(self, most_slots: int, size: int, dtype: str) -> None:
        self._buffers = np.empty((most_slots, size), dtype=dtype)
        self._parts: dict[Node, Floats] = {}
        self._borrowed: set[Node] = set()
        self._slots = 0

    def start(self, slots: int) -> None:
        """Begin a new sum over ``slots`` leaves."""
        self._parts.clear()
        self._borrowed.clear()
        self._slots = slots

    def add(self, node: Node, vector: Floats, *, borrow: bool = False) -> None:
        """Take in the sum of one node, and combine all that can be combined.

        Args:
            node: which.
            vector: its sum, shape (size,).
            borrow: use the vector itself, which stays as it is until `settle`, if it may be
                overwritten; else a copy.
        """
        if borrow and vector.flags.writeable:
            self._borrowed.add(node)
        else:
            vector = self._own(node, vector)
        parts = self._parts
        parts[node] = vector
        while (step := _up(node, self._slots)) is not None:
            if step.right is None:
                parts[step.parent] = parts.pop(node)
                if node in self._borrowed:
                    self._borrowed.remove(node)
                    self._borrowed.add(step.parent)
            elif step.left not in parts or step.right not in parts:
                return
            else:
                into = self._buffers[step.left.first]
                np.add(parts.pop(step.left), parts.pop(step.right), out=into)
                self._borrowed -= {step.left, step.right}
                parts[step.parent] = into
            node = step.parent

    def settle(self) -> None:
        """Copy what is still borrowed."""
        for node in self._borrowed:
            self._parts[node] = self._own(node, self._parts[node])
        self._borrowed.clear()

    def _own(self, node: Node, vector: Floats) -> Floats:
        place: Floats = self._buffers[node.first]
        np.copyto(place, vector)
        return place

    def sums(self, nodes: tuple[Node, ...]) -> Floats:
        """The sums of nodes, shape (nodes, size), all of whose leaves are there.

        Nodes whose parent is there too are not known any more. Valid until the next `start`, or
        until what is borrowed changes.
        """
        if len(nodes) == 1:
            return self._parts[nodes[0]][None]
        return np.stack([self._parts[node] for node in nodes])

    @property
    def complete(self) -> bool:
        """Whether the sum over all leaves is there."""
        return root(self._slots) in self._parts

    def total(self) -> Floats:
        """The sum over the leaves that are there; valid until the next `start`.

        Leaves that are missing are left out of the tree, as its cut-off right end is. May be
        overwritten by the caller.

        Raises:
            ValueError: there is none.
        """
        total = self._sum(root(self._slots))
        if total is None:
            raise ValueError("no leaf has been added")
        return total

    def _sum(self, node: Node) -> Floats | None:
        """Sum what has arrived below a node; None if nothing has."""
        if node in self._parts:
            return self._parts[node]
        if node.level == 0 or node.first >= self._slots:
            return None
        left = self._sum(Node(node.level - 1, 2 * node.number))
        right = self._sum(Node(node.level - 1, 2 * node.number + 1))
        if left is None or right is None:
            return right if left is None else left
        into: Floats = self._buffers[node.first]
        np.add(left, right, out=into)
        return into
