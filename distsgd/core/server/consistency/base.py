"""What a consistency policy decides. Everything else is shared by all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distsgd.core.reduction_tree import shares

__all__ = ["Policy"]

Range = tuple[int, int]


@dataclass(frozen=True)
class Policy:
    """When a worker may go on, and which pushes make an update.

    A minibatch is *open* from its first lease until it is applied. A policy says how many may be
    open at once, into which pieces one is cut (a piece is what one worker leases), and when the
    pieces that have arrived are enough for an update. The answers given here are those of
    `bsp`; a policy overrides what differs.

    Class attributes:
        name: what the user calls it.
        in_order: whether updates are applied in the order of the plan.
        requeues: whether pieces that are not there when their minibatch is applied go into a
            later one (else a minibatch waits for all of them).
    """

    name = "bsp"
    in_order = True
    requeues = False

    def window(self, workers: int) -> int:
        """How many minibatches may be open at once."""
        return 1

    def pieces(self, slots: int, workers: int) -> Sequence[Range]:
        """How a minibatch of so many slots is cut, as ranges [first, last) of slots."""
        return shares(slots, max(1, workers))

    def enough(self, arrived: int, pieces: int, last: bool) -> bool:
        """Whether a minibatch is applied now.

        Args:
            arrived: pieces that have been pushed.
            pieces: pieces it has.
            last: whether it holds all that is left of its epoch.
        """
        return arrived == pieces

    @property
    def local(self) -> bool:
        """Whether workers make steps on their own between two exchanges."""
        return False

    def steps(self, left: int) -> int:
        """How many steps of the plan the next minibatch goes over.

        Args:
            left: steps that are left of the epoch, at least 1.
        """
        return 1
