"""Samples updates and copies what recomputing them needs: W as read, before and after.

A seeded hash of the step decides whether an update is sampled. The step is known when the first
piece of a minibatch is leased, so no W is copied for an update that is not sampled, however stale
its gradients may be.
"""

from __future__ import annotations

from dataclasses import dataclass

from distsgd.core.arrays import Floats
from distsgd.core.messages import Applied, Piece
from distsgd.core.model import SlotLoss
from distsgd.core.optim import Updater
from distsgd.core.server.open_minibatch import OpenMinibatch

__all__ = ["MOST_WAITING", "SampledUpdate", "UpdateSampler", "is_sampled"]

MOST_WAITING = 64
"""Sampled updates that may wait to be recomputed; further ones are skipped."""

_MASK = (1 << 64) - 1


@dataclass(frozen=True, eq=False)
class SampledUpdate:
    """What the server read and wrote in one update; vectors are flat and padded, (parameters,).

    Attributes:
        update: its decision.
        read: version -> W, for the versions that the contributions were computed at.
        before: W before the update.
        state: state of the optimiser before it.
        total: the sum of the gradients, before it was divided by the number of examples.
        after: W after the update.
        arrived: the pieces, in order of arrival.
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


def is_sampled(seed: int, share: float, step: int) -> bool:
    """Whether an update is sampled: splitmix64 of seed and step, compared with the share.

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


class UpdateSampler:
    """Copies what a server reads and writes in sampled updates.

    Args:
        seed: of the run.
        share: of the updates to sample, above 0.

    Attributes:
        skipped: sampled updates that were not copied, because too many waited.
    """

    def __init__(self, seed: int, share: float) -> None:
        self._seed, self._share = seed, share
        self._found: dict[int, SampledUpdate] = {}  # by version
        self._waiting = 0
        self._before: tuple[Floats, dict[str, Floats], Floats] | None = None
        self.skipped = 0

    @property
    def has_news(self) -> bool:
        """Whether a sampled update has not been taken yet."""
        return bool(self._found)

    @property
    def full(self) -> bool:
        """Whether the queue is nearly full, so that further updates may be skipped."""
        return 4 * self._waiting >= MOST_WAITING

    def samples(self, step: int) -> bool:
        """Whether the update that is counted under a step is sampled."""
        return is_sampled(self._seed, self._share, step)

    def leased(self, minibatch: OpenMinibatch, version: int, weights: Floats) -> None:
        """Copy W, at which a leased piece of the minibatch will be computed."""
        if self.samples(minibatch.step) and version not in minibatch.read:
            minibatch.read[version] = weights.copy()

    def before(self, minibatch: OpenMinibatch, total: Floats, updater: Updater) -> None:
        """Copy W, the optimiser's state and the sum of the gradients before an update."""
        self._before = None
        if not minibatch.read:
            return
        if self._waiting >= MOST_WAITING:
            self.skipped += 1
            return
        state = {name: array.copy() for name, array in updater.optimizer.state.items()}
        self._before = updater.weights.copy(), state, total.copy()

    def after(self, minibatch: OpenMinibatch, update: Applied, weights: Floats) -> None:
        """Copy W after the update, and keep it all until `take`."""
        if self._before is None:
            return
        (before, state, total), self._before = self._before, None
        used = {lease.version for _, lease in update.contributions}
        self._found[update.version] = SampledUpdate(
            update, {version: minibatch.read[version] for version in used}, before, state, total,
            weights.copy(), tuple(minibatch.arrived), tuple(minibatch.losses),
        )  # fmt: skip
        self._waiting += 1

    def take(self, version: int) -> SampledUpdate | None:
        """Remove and return the update that made this version; None if it is not sampled."""
        return self._found.pop(version, None)

    def delivered(self, count: int) -> None:
        """Note that ``count`` updates no longer wait to be recomputed."""
        self._waiting -= count
