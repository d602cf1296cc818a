"""How a team makes its updates: which steps, which pieces, and where each member's sums belong.

A team is all workers of a training, on one node, with W in memory that they share. It makes updates
by itself while it has a standing lease. Everybody derives the same cut from plan and policy, so
that no message says who computes what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import Node, cover, root
from distsgd.core.server.consistency.base import Policy, Range

__all__ = ["Cut", "RangeSum", "TeamSteps"]


class TeamSteps:
    """The updates of a team, in order.

    Args:
        plan: the slots of each step.
        policy: how a minibatch is cut; one of those with `Policy.in_team`.
        members: workers of the team.
    """

    def __init__(self, plan: Plan, policy: Policy, members: int) -> None:
        self._plan, self._policy, self._members = plan, policy, members
        self._cuts: dict[int, Cut] = {}

    def steps(self, step: int) -> int:
        """Steps of the plan that the update that begins at a step covers."""
        return self._policy.steps(self._plan.steps_per_epoch - step % self._plan.steps_per_epoch)

    def examples(self, step: int) -> int:
        """Examples of the update that begins at a step."""
        low, high = self._plan.minibatch(step)
        if (steps := self.steps(step)) > 1:
            high = self._plan.minibatch(step + steps - 1)[1]
        return high - low

    def cut(self, step: int) -> Cut:
        """How the update that begins at a step is cut."""
        slots = self._plan.slots(step)
        if (found := self._cuts.get(slots)) is None:
            found = self._cuts[slots] = _cut(tuple(self._policy.pieces(slots, self._members)))
        return found

    def pieces(self, step: int) -> tuple[Range, ...]:
        """The pieces of the update that begins at a step; the first is the first member's.

        There may be fewer than members, of a short minibatch.
        """
        return self.cut(step).pieces

    def suits(self, step: int) -> bool:
        """Whether each piece of the update has a member of its own."""
        return len(self.pieces(step)) <= self._members

    def lease(self, step: int, member: int, version: int, serial: int) -> Lease | None:
        """What a member computes of the update that begins at a step; None for nothing.

        In turns it is the whole minibatch, for any member.
        """
        pieces = self.pieces(step)
        if not self._policy.in_order:
            member = 0
        if member >= len(pieces):
            return None
        replicas = len(pieces) if self._policy.local else 0
        return Lease(step, *pieces[member], version, self.steps(step), replicas, serial)


class _Addition(NamedTuple):
    """Operands are places: below the number of node sums one of these, from there on scratch."""

    left: int
    right: int
    into: int


class Cut(NamedTuple):
    """How an update is cut, and its sums are added.

    Attributes:
        pieces: as `TeamSteps.pieces`.
        nodes: of each node sum, in the order of the leaves, its piece and its first leaf.
        additions: what makes the total of them along the tree.
        total: the place of the total after these.
    """

    pieces: tuple[Range, ...]
    nodes: tuple[tuple[int, int], ...]
    additions: tuple[_Addition, ...]
    total: int


def _cut(pieces: tuple[Range, ...]) -> Cut:
    leaves = pieces[-1][1]
    nodes = [
        (piece, node) for piece, (first, last) in enumerate(pieces)
        for node in cover(first, last, leaves)
    ]  # fmt: skip
    places = {node: place for place, (_, node) in enumerate(nodes)}
    additions: list[_Addition] = []

    def place_of(node: Node) -> int:
        if node in places:
            return places[node]
        left = Node(node.level - 1, 2 * node.number)
        right = Node(node.level - 1, left.number + 1)
        first = place_of(left)
        if right.first >= leaves:
            return first
        second = place_of(right)
        into = len(nodes) + len(additions)
        additions.append(_Addition(first, second, into))
        return into

    total = place_of(root(leaves))
    rows = tuple((piece, node.first) for piece, node in nodes)
    return Cut(pieces, rows, tuple(additions), total)


class RangeSum:
    """Adds one range of the node sums of all members, along the fixed tree.

    The additions are those of `TreeSum`, so that the bits are those of any other way.

    Args:
        size: length of the range.
        dtype: of the sums.
        most: node sums of an update, at most.
    """

    def __init__(self, size: int, dtype: str, most: int) -> None:
        self._scratch = np.empty((max(1, most), size), dtype)

    def total(self, cut: Cut, part: Callable[[int, int], Floats]) -> Floats:
        """The sum over all leaves, which may be overwritten.

        Args:
            cut: of the update.
            part: the range of a node sum, by its piece and its first leaf.
        """
        values = [part(piece, row) for piece, row in cut.nodes]
        count = len(values)
        for left, right, into in cut.additions:
            out = self._scratch[into - count]
            np.add(values[left], values[right], out=out)
            values.append(out)
        total = values[cut.total]
        if cut.total < count:  # a sum that others may still read stays as it is
            total = self._scratch[0]
            np.copyto(total, values[cut.total])
        return total
