"""What workers and the parameter server say to each other, and what the server decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.core.model import SlotLoss
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import shares

__all__ = [
    "INCARNATION",
    "Applied",
    "Decision",
    "Dismiss",
    "Diverged",
    "Dropped",
    "Grant",
    "Lease",
    "Message",
    "Piece",
    "Push",
    "ResidualReport",
    "ResidualRequest",
    "Stand",
    "StandingLease",
    "Stretch",
    "Update",
    "incarnation_of",
    "next_incarnation",
]

INCARNATION = 1 << 32
"""Serials per incarnation of a worker: those of incarnation n start at n * INCARNATION."""


def incarnation_of(serial: int) -> int:
    """How often the worker had been lost when it was given the lease with this serial."""
    return serial // INCARNATION


def next_incarnation(serial: int) -> int:
    """The first serial of the incarnation that follows."""
    return (serial // INCARNATION + 1) * INCARNATION


Piece = tuple[int, int, int]
"""Step of the plan, first leaf, one past the last leaf; see `Lease`."""


class Lease(NamedTuple):
    """The part of an update that one worker computes.

    The leaves of an update's reduction tree are the slots of its minibatch; for a round of local
    steps they are the replicas. `slots` says which slots of which minibatches a lease covers.

    Attributes:
        step: first step of the plan that it covers, from 0 over the whole run.
        first: first leaf.
        last: one past the last leaf.
        version: version of W to compute at (number of updates applied to it).
        steps: steps of the plan that it covers; more than 1 for local steps.
        replicas: replicas of the round, for local steps; 0 where the leaves are slots.
        serial: answers of this worker that were used before, in its current incarnation, plus
            `INCARNATION` for each incarnation before.
    """

    step: int
    first: int
    last: int
    version: int
    steps: int = 1
    replicas: int = 0
    serial: int = 0

    @property
    def piece(self) -> Piece:
        """Step and leaves."""
        return self[:3]

    @property
    def task(self) -> tuple[int, ...]:
        """All but the serial: a gradient does not depend on who computes it."""
        return self[:-1]

    def slots(self, plan: Plan) -> Iterator[Piece]:
        """The slots of each step: (step, first slot, one past the last).

        A replica has no part in a minibatch with fewer slots than there are replicas before it.
        """
        if not self.replicas:
            yield self.piece
            return
        for step in range(self.step, self.step + self.steps):
            parts = shares(plan.slots(step), self.replicas)
            for first, last in parts[self.first : self.last]:
                yield step, first, last


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


class ResidualRequest(NamedTuple):
    """The server asks a worker for its residual (error feedback), before it gives more work.

    Attributes:
        serial: after how many answers, counted as in `Lease.serial`.
    """

    serial: int


class ResidualReport(NamedTuple):
    """The answer to a `ResidualRequest`.

    Attributes:
        serial: as in the request.
        residual: flat and padded, shape (parameters,); all of it, whichever server asks.
    """

    serial: int
    residual: Floats


Message = Push | ResidualReport
"""What a worker sends."""


class StandingLease(NamedTuple):
    """Updates that a team, workers that share memory, makes without the server.

    How the team cuts each of them into pieces follows from plan and policy: `TeamSteps`.

    Attributes:
        step: first step of the plan.
        end: one past the last.
        version: version of W at which it begins.
        updates: how many updates these steps are.
        members: numbers of the workers, in the order of their pieces.
        serials: of each member's next answer, see `Lease`.
    """

    step: int
    end: int
    version: int
    updates: int
    members: tuple[int, ...]
    serials: tuple[int, ...]


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
        fingerprint: of W after it, see `distsgd.core.fingerprint`; None where W is split.
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
    fingerprint: int | None = None

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


class Stretch(NamedTuple):
    """Updates that a team has made, one after another: what `Applied` says of each, in arrays.

    All are of one epoch. Arrays have an entry for each update.

    Attributes:
        version: version of W before the first.
        epoch: as in `Applied`.
        steps: likewise, int64.
        loss: likewise, float64.
        correct: likewise, int64.
        examples: likewise, int64.
        learning_rates: likewise, float64.
        answers: worker and lease of each piece, int64 of shape (updates, pieces, 1 + fields of a
            lease); a worker of -1 where an update has fewer pieces.
        ends_epoch: whether the last of them ends its epoch.
        fingerprints: likewise, uint64; None if one is missing.
    """

    version: int
    epoch: int
    steps: NDArray[np.int64]
    loss: NDArray[np.float64]
    correct: NDArray[np.int64]
    examples: NDArray[np.int64]
    learning_rates: NDArray[np.float64]
    answers: NDArray[np.int64]
    ends_epoch: bool
    fingerprints: NDArray[np.uint64] | None = None

    @property
    def end(self) -> int:
        """Version of W after the last."""
        return self.version + len(self.steps)

    def ages(self) -> Counter[int]:
        """Age of a contribution in updates -> how many are so old; see `Applied.ages`."""
        before = self.version + np.arange(len(self.steps))
        ages = (before[:, None] - self.answers[:, :, 4])[self.answers[:, :, 0] >= 0]
        values, counts = np.unique(ages, return_counts=True)
        return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def updates(self) -> Iterator[Applied]:
        """The updates one by one."""
        columns: tuple[list[Any], ...] = tuple(
            array.tolist()
            for array in (
                self.steps, self.loss, self.correct, self.examples, self.learning_rates,
                self.answers,
            )
        )  # fmt: skip
        version, last = self.version, self.end
        prints: list[int | None] = [None] * len(self.steps)
        if self.fingerprints is not None:
            prints = self.fingerprints.tolist()
        for step, loss, correct, examples, rate, answers, found in zip(
            *columns, prints, strict=True
        ):
            version += 1
            contributions = tuple([(row[0], Lease(*row[1:])) for row in answers if row[0] >= 0])
            yield Applied(
                step, self.epoch, version, loss, correct, examples, rate, contributions, (),
                self.ends_epoch and version == last, found,
            )  # fmt: skip


@dataclass(frozen=True)
class Stand:
    """Have a team make the updates of this lease by itself."""

    lease: StandingLease


@dataclass(frozen=True)
class Diverged:
    """The loss or the gradient of a step is not finite, and W is as it was; or W became so."""

    step: int
    loss: float
    learning_rate: float


Decision = Grant | Dismiss | Dropped | Applied | Stretch | Stand | Diverged
