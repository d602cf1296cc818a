"""A minibatch from its first lease until it is applied."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease, Piece, Push
from distsgd.core.model import SlotLoss
from distsgd.core.reduction_tree import Node, TreeSum, cover

__all__ = ["OpenMinibatch", "exact_sum"]


class OpenMinibatch:
    """Its pieces: free, leased, or arrived.

    The leaves of its reduction tree are its slots (or replicas) in the order of its pieces.

    Args:
        step: step of the plan that its learning rate belongs to.
        pieces: what it is made of.
        steps: steps of the plan that each piece goes over (more than 1 for local steps).
        replicas: number of replicas that each of these steps is cut for, or 0.
        last: whether it holds all that is left of its epoch.
    """

    def __init__(
        self,
        step: int,
        pieces: Sequence[Piece],
        *,
        steps: int = 1,
        replicas: int = 0,
        last: bool = False,
    ) -> None:
        self.step, self.steps, self.replicas, self.last = step, steps, replicas, last
        self.pieces = list(pieces)
        self.free = deque(self.pieces)
        self.given_back = deque[Piece]()  # those of the free ones that were leased before
        self.leased: dict[Piece, tuple[int, Lease]] = {}
        self.arrived: dict[Piece, tuple[int, Lease]] = {}
        self.losses: list[SlotLoss] = []
        self.read: dict[int, Floats] = {}  # version -> W, if it is sampled
        self._total: TreeSum | None = None
        self._place: dict[Piece, int] = {}
        leaf = 0
        for piece in self.pieces:
            self._place[piece] = leaf
            leaf += piece[2] - piece[1]
        self._leaves = leaf

    def lease(self, worker: int, version: int, serial: int, piece: Piece) -> Lease:
        """Lease a free piece.

        Args:
            worker: to whom.
            version: version of W that it is to be computed at.
            serial: see `Lease`.
            piece: which one.
        """
        self.free.remove(piece)
        if piece in self.given_back:
            self.given_back.remove(piece)
        lease = Lease(*piece, version, self.steps, self.replicas, serial)
        self.leased[piece] = worker, lease
        return lease

    def release(self, worker: int) -> None:
        """The pieces of a worker that has gone are free again, before the others."""
        for piece in [piece for piece, (owner, _) in self.leased.items() if owner == worker]:
            del self.leased[piece]
            self.free.appendleft(piece)
            self.given_back.appendleft(piece)

    def free_at(self, place: int) -> Piece | None:
        """The piece at a place, counted among all pieces, if it is free."""
        piece = self.pieces[place] if place < len(self.pieces) else None
        return piece if piece in self.free else None

    def take(
        self, worker: int, push: Push, tree: Callable[[], TreeSum], *, borrow: bool = False
    ) -> bool:
        """Take in a push; False if its piece is not wanted (any more).

        Args:
            worker: who pushes.
            push: what.
            tree: gives a place to sum in, when the first piece arrives.
            borrow: the gradients stay as they are until `settle`.
        """
        lease = push.lease
        piece = lease.piece
        # Any worker may answer a lease: a gradient does not depend on who computed it.
        if piece not in self.leased:
            return False
        nodes = self._nodes(piece)
        owner, leased = self.leased[piece]
        # With compression it does: what a worker sends depends on what it has sent before.
        its_own = push.encoded is None or (owner, leased.serial) == (worker, lease.serial)
        if not (its_own and leased.task == lease.task and self._fits(push, len(nodes))):
            return False
        if self._total is None:
            self._total = tree()
            self._total.start(self._leaves)
        del self.leased[piece]
        self.arrived[piece] = (worker, lease)
        self.losses.extend(push.losses)
        for node, vector in zip(nodes, push.gradients, strict=True):
            self._total.add(node, vector, borrow=borrow)
        return True

    def _fits(self, push: Push, nodes: int) -> bool:
        """Whether a push has as many losses and gradients as its lease asks for."""
        losses_fit = len(push.losses) == push.lease.last - push.lease.first or self.replicas > 0
        return losses_fit and push.gradients.ndim == 2 and len(push.gradients) == nodes

    def _nodes(self, piece: Piece) -> tuple[Node, ...]:
        place = self._place[piece]
        return cover(place, place + piece[2] - piece[1], self._leaves)

    def settle(self) -> None:
        """Copy what is still borrowed, if there is such."""
        if self._total is not None:
            self._total.settle()

    def missing(self) -> list[tuple[int, int, int, int]]:
        """Place among the leaves, and piece, of all that have not arrived, in order."""
        if len(self.arrived) == len(self.pieces):
            return []
        return [(self._place[at], *at) for at in self.pieces if at not in self.arrived]

    def contributions(self) -> tuple[tuple[int, Lease], ...]:
        """Worker and lease of every piece that has arrived, in the order of the pieces."""
        return tuple(self.arrived[piece] for piece in self.pieces if piece in self.arrived)

    def gradient(self) -> Floats:
        """The sum of what has arrived, along the tree; may be overwritten."""
        assert self._total is not None
        return self._total.total()

    def close(self) -> TreeSum:
        """Give back the place where it was summed."""
        assert self._total is not None
        total, self._total = self._total, None
        return total

    def loss(self) -> tuple[float, int, int]:
        """Sum of losses, hits and examples of what has arrived."""
        loss = exact_sum([part.loss for part in self.losses])
        correct = sum(part.correct for part in self.losses)
        return loss, correct, sum(part.examples for part in self.losses)


def exact_sum(values: Sequence[float]) -> float:
    """The correctly rounded sum, whatever the order of the values; nan if one is not finite."""
    if not all(map(math.isfinite, values)):
        return math.nan
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf
