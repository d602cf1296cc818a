"""What a consistency policy decides. All else is the same for every policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from distsgd.core.reduction_tree import shares

__all__ = ["Parameter", "Policy", "parameter"]

Range = tuple[int, int]


@dataclass(frozen=True)
class Parameter:
    """A whole number that a policy takes; it is a setting of the same name.

    Attributes:
        help: what it is, for the command line and the manual.
        default: its value if it is not given.
        least: the smallest.
        most: the largest; None for no bound.
        aliases: names that other tools have for it.
    """

    help: str
    default: int
    least: int
    most: int | None = None
    aliases: tuple[str, ...] = ()


def parameter(
    help: str, *, default: int, least: int, most: int | None = None, aliases: tuple[str, ...] = ()
) -> Any:
    """A field of a policy that is a `Parameter`."""
    metadata = {"parameter": Parameter(help, default, least, most, aliases)}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Policy:
    """When a worker may continue, and which pushes make an update.

    A minibatch is *open* from its first lease until it is applied. A policy says how many may be
    open at once, into which pieces one is cut (a piece is what one worker leases), and when the
    pieces that have arrived are enough for an update. The answers of this class are those of
    `bsp`; a policy overrides what differs.

    Class attributes:
        name: what the user calls it.
        in_order: whether updates are applied in the order of the plan.
        requeues: whether pieces that have not arrived when their minibatch is applied go into a
            later one (else a minibatch waits for all of them).
        in_team: whether workers that share memory can make the updates among themselves.
        divides: whether pieces are what the number of workers makes of a minibatch, and nothing
            else: then workers of one node may have theirs in one piece.
    """

    name = "bsp"
    in_order = True
    requeues = False
    in_team = False
    divides = False

    @classmethod
    def parameters(cls) -> dict[str, Parameter]:
        """The parameters of the policy, by name."""
        found = {one.name: one.metadata.get("parameter") for one in fields(cls)}
        return {name: known for name, known in found.items() if known is not None}

    @classmethod
    def create(cls, replicas: int, **parameters: int) -> Self:
        """A policy.

        Args:
            replicas: workers at the start of the run, at least 1.
            **parameters: by name; those left out have their default.
        """
        return cls(**parameters)

    def most(self, name: str, slots: int) -> int | None:
        """The largest value that a parameter can have; None for no bound.

        Args:
            name: of the parameter.
            slots: of a minibatch.
        """
        return self.parameters()[name].most

    @property
    def max_staleness(self) -> int | None:
        """The most updates that a gradient is old when it is applied; None for no bound."""
        return 0

    def window(self, workers: int) -> int:
        """How many minibatches may be open at once; if gradients may be S updates old, S + 1."""
        return (self.max_staleness or 0) + 1

    @property
    def halves(self) -> int:
        """In how many buffers a worker computes in turn, by the serial of its lease.

        Two if its last gradients often wait for their update while it computes the next: the
        server would have to copy them.
        """
        return 2 if self.max_staleness else 1

    def pieces(self, slots: int, workers: int) -> Sequence[Range]:
        """How a minibatch of ``slots`` slots is cut, as ranges [first, last) of slots."""
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
        """Whether workers make steps on their own between two exchanges, of plain SGD."""
        return False

    def steps(self, left: int) -> int:
        """How many steps of the plan the next minibatch covers.

        Args:
            left: steps that are left of the epoch, at least 1.
        """
        return 1
