"""How a team makes its updates: which steps, which pieces, and where each member's sums belong.

A team is all workers of a training, on one node, with W in memory that they share. It makes updates
by itself while it has a standing lease. Everybody derives the same cut from plan and policy, so
that no message says who computes what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import Node, cover, root
from distsgd.core.server.consistency.base import Policy, Range

__all__ = ["RangeSum", "TeamSteps"]


class TeamSteps:
    """The updates of a team, in order.

    Args:
        plan: the slots of each step.
        policy: how a minibatch is cut; one of those with `Policy.in_team`.
        members: workers of the team.
    """

    def __init__(self, plan: Plan, policy: Policy, members: int) -> None:
        self._plan, self._policy, self._members = plan, policy, members
        self._cuts: dict[int, tuple[Range, ...]] = {}

    def steps(self, step: int) -> int:
        """Steps of the plan that the update that begins at a step covers."""
        return self._policy.steps(self._plan.steps_per_epoch - step % self._plan.steps_per_epoch)

    def pieces(self, step: int) -> tuple[Range, ...]:
        """The pieces of the update that begins at a step; the first is the first member's.

        There may be fewer than members, of a short minibatch.
        """
        slots = self._plan.slots(step)
        if (found := self._cuts.get(slots)) is None:
            found = self._cuts[slots] = tuple(self._policy.pieces(slots, self._members))
        return found

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

    def nodes(self, step: int) -> tuple[tuple[int, int, Node], ...]:
        """The node sums of an update: (member, row, node), in the order of the leaves.

        The row is counted from the first leaf of the member's piece.
        """
        return _nodes(self.pieces(step))

    def leaves(self, step: int) -> int:
        """Leaves of the reduction tree of an update."""
        return self.pieces(step)[-1][1]


@cache
def _nodes(pieces: tuple[Range, ...]) -> tuple[tuple[int, int, Node], ...]:
    leaves = pieces[-1][1]
    return tuple(
        (member, node.first - first, node)
        for member, (first, last) in enumerate(pieces)
        for node in cover(first, last, leaves)
    )


class _Addition(NamedTuple):
    """Operands are places: below the number of node sums one of these, from there on scratch."""

    left: int
    right: int
    into: int


@cache
def _additions(nodes: tuple[Node, ...], leaves: int) -> tuple[tuple[_Addition, ...], int]:
    """The additions that make the total of node sums along the tree, and where it is then."""
    places = {node: place for place, node in enumerate(nodes)}
    found: list[_Addition] = []

    def place_of(node: Node) -> int:
        if node in places:
            return places[node]
        left = Node(node.level - 1, 2 * node.number)
        right = Node(node.level - 1, left.number + 1)
        first = place_of(left)
        if right.first >= leaves:
            return first
        second = place_of(right)
        into = len(nodes) + len(found)
        found.append(_Addition(first, second, into))
        return into

    place = place_of(root(leaves))
    return tuple(found), place


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

    def total(
        self,
        nodes: Sequence[tuple[int, int, Node]],
        leaves: int,
        part: Callable[[int, int], Floats],
    ) -> Floats:
        """The sum over all leaves, which may be overwritten.

        Args:
            nodes: see `TeamSteps.nodes`.
            leaves: of the tree.
            part: the range of a member's row.
        """
        additions, place = _additions(tuple([node for _, _, node in nodes]), leaves)
        values = [part(member, row) for member, row, _ in nodes]
        count = len(values)
        for left, right, into in additions:
            out = self._scratch[into - count]
            np.add(values[left], values[right], out=out)
            values.append(out)
        total = values[place]
        if place < count:  # a sum that others may still read stays as it is
            total = self._scratch[0]
            np.copyto(total, values[place])
        return total
