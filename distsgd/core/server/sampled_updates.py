"""Keeps what an independent recomputation of some updates needs: W as it was read, before, after.

Which updates is decided by the step of the plan that an update is counted under, through a seeded
hash. That is known when its first piece is leased, so no W is kept for an update that turns out
not to be looked at, however old its gradients may be.
"""

from __future__ import annotations

from dataclasses import dataclass

from distsgd.core.arrays import Floats
from distsgd.core.messages import Applied
from distsgd.core.model.slot_gradient import SlotLoss
from distsgd.core.optim.optimizers import Updater
from distsgd.core.server.open_minibatch import OpenMinibatch, Piece

__all__ = ["MOST_WAITING", "Evidence", "Witness", "sampled"]

MOST_WAITING = 64
"""Updates that may wait for their recomputation; those that come on top are let pass."""

_MASK = (1 << 64) - 1


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the server really did in one update. Vectors are flat and padded, (parameters,).

    Attributes:
        update: its decision.
        read: version -> W, for the versions that the contributions were computed at.
        before: W before the update.
        state: state of the optimiser before it.
        total: the sum of the gradients, before it was divided by the number of examples.
        after: W after the update.
        arrived: the pieces in the order in which they came.
        losses: of their slots, in that order.
    """

    update: Applied
    read: dict[int, Floats]
    before: Floats
    state: dict[str, Floats]
    total: Floats
    after: Floats
    arrived: tuple[Piece, ...]
    losses: tuple[SlotLoss, ...]


def sampled(seed: int, share: float, step: int) -> bool:
    """Whether an update is among those that are looked at: splitmix64 of seed and step.

    Args:
        seed: of the run.
        share: of the updates, from 0 to 1.
        step: step of the plan that the update is counted under.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    mixed = (seed * 0xD1342543DE82EF95 + (step + 1) * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return (mixed ^ (mixed >> 31)) < share * 2**64


class Witness:
    """Sits beside a server and copies what sampled updates read and do.

    Args:
        seed: of the run.
        share: of the updates that are looked at, above 0.

    Attributes:
        skipped: sampled updates that were let pass, as too many waited.
    """

    def __init__(self, seed: int, share: float) -> None:
        self._seed, self._share = seed, share
        self._found: dict[int, Evidence] = {}  # version -> evidence
        self._waiting = 0
        self._before: tuple[Floats, dict[str, Floats], Floats] | None = None
        self.skipped = 0

    @property
    def has_news(self) -> bool:
        """Whether there is evidence that has not been taken."""
        return bool(self._found)

    @property
    def full(self) -> bool:
        """Whether so much waits that more would be let pass soon."""
        return 4 * self._waiting >= MOST_WAITING

    def leased(self, minibatch: OpenMinibatch, version: int, weights: Floats) -> None:
        """A piece of a minibatch is leased, to be computed at W as it is now."""
        if sampled(self._seed, self._share, minibatch.step) and version not in minibatch.read:
            minibatch.read[version] = weights.copy()

    def before(self, minibatch: OpenMinibatch, total: Floats, updater: Updater) -> None:
        """A minibatch is about to be applied."""
        self._before = None
        if not minibatch.read:
            return
        if self._waiting >= MOST_WAITING:
            self.skipped += 1
            return
        state = {name: array.copy() for name, array in updater.optimizer.state.items()}
        self._before = updater.weights.copy(), state, total.copy()

    def after(self, minibatch: OpenMinibatch, update: Applied, weights: Floats) -> None:
        """It has been applied."""
        if self._before is None:
            return
        (before, state, total), self._before = self._before, None
        used = {lease.version for _, lease in update.contributions}
        self._found[update.version] = Evidence(
            update, {version: minibatch.read[version] for version in used}, before, state, total,
            weights.copy(), tuple(minibatch.arrived), tuple(minibatch.losses),
        )  # fmt: skip
        self._waiting += 1

    def take(self, version: int) -> Evidence | None:
        """The evidence of the update that made this version, if it is looked at."""
        return self._found.pop(version, None)

    def delivered(self, count: int) -> None:
        """So many updates wait no more."""
        self._waiting -= count
