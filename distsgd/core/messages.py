"""What workers and the parameter server say to each other, and what the server decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from distsgd.core.arrays import Floats
from distsgd.core.model import SlotLoss

__all__ = [
    "LIFE",
    "REPORT",
    "Applied",
    "Decision",
    "Dismiss",
    "Diverged",
    "Dropped",
    "Grant",
    "Lease",
    "Push",
    "Update",
]

LIFE = 1 << 32
"""What is added to the serials of a worker that has been lost, when it comes back."""

REPORT = -2
"""The step of a lease that asks for no gradient, but for the worker's residual."""


class Lease(NamedTuple):
    """Slots that one worker has been asked to compute.

    Attributes:
        step: the update they belong to, from 0 over the whole run.
        first: first slot.
        last: one past the last slot.
        version: the version of W to compute them at (number of updates applied to it).
        steps: how many steps of the plan it goes over; more than 1 for local steps.
        shares: with local steps, each minibatch is cut into so many shares, and the lease is
            for those from first to last.
        serial: how many answers of its worker have been used before, since it joined; plus
            `LIFE` for each time that it has been lost.
    """

    step: int
    first: int
    last: int
    version: int
    steps: int = 1
    shares: int = 0
    serial: int = 0

    @property
    def task(self) -> tuple[int, ...]:
        """All but the serial: a gradient does not depend on who computes it."""
        return self[:-1]


class Push(NamedTuple):
    """The answer to a lease.

    Attributes:
        lease: what was computed.
        losses: one for each slot that was computed.
        gradients: shape (nodes, parameters): the sums of the nodes that cover the lease, left
            to right (`reduction_tree.cover`). For a lease over several local steps one row:
            examples * (W as leased - W after the steps). With compression, what the server is
            to see: the first row has it all.
        encoded: with compression, the bytes that travel in place of the gradients.
    """

    lease: Lease
    losses: tuple[SlotLoss, ...]
    gradients: Floats
    encoded: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes of the gradients as they travel."""
        return self.gradients.nbytes if self.encoded is None else len(self.encoded)


@dataclass(frozen=True)
class Grant:
    """Send this worker W, as it is now, and this lease."""

    worker: int
    lease: Lease


@dataclass(frozen=True)
class Dismiss:
    """Tell this worker that there is no more work."""

    worker: int


@dataclass(frozen=True)
class Dropped:
    """A push that was not used: doubled, or for slots that are no longer wanted.

    Attributes:
        worker: whose.
        lease: what it answered.
        twice: whether the same push has come before and waits for its update: followers keep it.
    """

    worker: int
    lease: Lease
    twice: bool = field(default=False, compare=False)


class Applied(NamedTuple):
    """An update of W.

    Attributes:
        step: step of the plan that its learning rate belongs to.
        epoch: epoch of its examples, from 0.
        version: version of W after it.
        loss: mean loss of the minibatch, without regularisation, before the update.
        correct: examples of the minibatch that were classified rightly, before the update.
        examples: examples of the minibatch.
        learning_rate: learning rate of the update.
        contributions: worker and lease of each piece that went into it, in the order in which
            they were added.
        requeued: pieces that were put off to a later update, each (place among the leaves of the
            reduction tree, step, first, last).
        ends_epoch: whether all examples of the epoch have now been applied.
    """

    step: int
    epoch: int
    version: int
    loss: float
    correct: int
    examples: int
    learning_rate: float
    contributions: tuple[tuple[int, Lease], ...]
    requeued: tuple[tuple[int, int, int, int], ...]
    ends_epoch: bool

    @property
    def ages(self) -> list[int]:
        """How many updates each contribution is old: version when applied - version read."""
        return [self.version - 1 - lease.version for _, lease in self.contributions]


class Update(Protocol):
    """What makes an update, without its outcome: `Applied`, or a record of the journal."""

    @property
    def version(self) -> int:
        """Version of W after it."""

    @property
    def step(self) -> int:
        """Step of the plan that its learning rate belongs to."""

    @property
    def contributions(self) -> tuple[tuple[int, Lease], ...]:
        """Worker and lease of each piece, in order."""

    @property
    def requeued(self) -> tuple[tuple[int, int, int, int], ...]:
        """Place and piece of those that were put off."""


@dataclass(frozen=True)
class Diverged:
    """The loss or the gradient of a step is not finite, and W is as it was; or W became so."""

    step: int
    loss: float
    learning_rate: float


Decision = Grant | Dismiss | Dropped | Applied | Diverged
