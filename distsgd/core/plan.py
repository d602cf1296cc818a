"""Which examples make up every minibatch and every slot of a run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["SAMPLINGS", "Plan"]

SAMPLINGS = ("shuffle", "random", "sequential")

_ORDER_STREAM = 1
"""Names the stream of random bits behind the order of an epoch."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A pure function from (seed, sampling, epoch, step) to the examples of each slot.

    The number of workers is not among its arguments: every minibatch is cut into the same
    slots whoever computes them. Steps are counted from 0 over the whole run.

    Attributes:
        seed: seed of the run.
        sampling: "shuffle" permutes the examples each epoch and takes them in order; "random"
            draws with replacement; "sequential" takes them as they are stored.
        examples: number of training examples.
        batch_size: examples of a minibatch; the last of an epoch may be shorter.
        slot_size: examples of a slot; the last of a minibatch may be shorter.
        epochs: number of epochs.
    """

    seed: int
    sampling: str
    examples: int
    batch_size: int
    slot_size: int
    epochs: int

    @cached_property
    def steps_per_epoch(self) -> int:
        """Minibatches of an epoch, the short one included."""
        return -(-self.examples // self.batch_size)

    @cached_property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.steps_per_epoch * self.epochs

    @property
    def most_slots(self) -> int:
        """Slots of a full minibatch."""
        return -(-self.batch_size // self.slot_size)

    def epoch_of(self, step: int) -> int:
        """The epoch that a step belongs to, from 0."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether a step is the last of its epoch."""
        return (step + 1) % self.steps_per_epoch == 0

    def minibatch(self, step: int) -> tuple[int, int]:
        """Positions [low, high) of a step's examples in the order of its epoch."""
        low = (step % self.steps_per_epoch) * self.batch_size
        return low, min(low + self.batch_size, self.examples)

    def batch_examples(self, step: int) -> int:
        """Examples of a step's minibatch."""
        low, high = self.minibatch(step)
        return high - low

    def slots(self, step: int) -> int:
        """Slots of a step's minibatch."""
        return -(-self.batch_examples(step) // self.slot_size)

    def slot(self, step: int, slot: int) -> tuple[int, int]:
        """Positions [low, high) of a slot's examples in the order of its epoch."""
        low, high = self.minibatch(step)
        start = low + slot * self.slot_size
        return start, min(start + self.slot_size, high)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The examples of an epoch in the order in which they are used, shape (examples,).

        Only the raw bits of PCG64 are used, which numpy keeps stable over its versions, and a
        stable sort: the order does not depend on the version of numpy.
        """
        if self.sampling == "sequential":
            return np.arange(self.examples, dtype=np.int64)
        sequence = np.random.SeedSequence([self.seed, _ORDER_STREAM, epoch])
        bits = np.random.PCG64(sequence).random_raw(self.examples)
        if self.sampling == "random":
            return (bits % np.uint64(self.examples)).astype(np.int64)
        return np.argsort(bits, kind="stable").astype(np.int64, copy=False)

    def indices(self, step: int, slot: int) -> NDArray[np.int64]:
        """The examples of one slot. Use `order` once an epoch where speed matters."""
        low, high = self.slot(step, slot)
        return self.order(self.epoch_of(step))[low:high]
