"""Which examples make up every minibatch and every slot of a run.

The examples at positions of an epoch, of a few windows at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Ints

__all__ = ["SAMPLINGS", "SHUFFLES", "EpochOrder", "Plan", "validation_rows"]


SAMPLINGS = ("shuffle", "random", "sequential")
SHUFFLES = ("global", "shard")

_ORDER_STREAM = 1
"""Names the stream of random bits behind the order of an epoch."""

_SHARDS_STREAM = 3
_WINDOW_STREAM = 4
"""Those behind the order of the shards, and behind that of the examples within a window."""


_VALIDATION_STREAM = 7
"""That behind the choice of the rows for validation."""


def validation_rows(
    seed: int, share: float, rows: int, labels: Ints | None = None
) -> NDArray[np.int64]:
    """The training rows that are held out for validation: a pure function of its arguments.

    With labels, each class gives its share, rounded up or down, and keeps a row at least. All
    classes together give ``round(share * rows)``, less what classes of one row would have given.

    Args:
        seed: of the run.
        share: of the rows, from 0 to 0.5.
        rows: of the training set.
        labels: of all of them, shape (rows,); None to choose whatever the class.

    Returns:
        numbers of the rows, ascending, shape (held out,).
    """
    order = _permutation([seed, _VALIDATION_STREAM], rows)
    if labels is not None:
        truth = np.asarray(labels, dtype=np.int64)
        order = order[np.bincount(truth)[truth[order]] > 1] if rows else order
        order = order[np.argsort(truth[order], kind="stable")]  # class by class, each shuffled
    count = round(share * len(order))
    # Evenly spaced: of any stretch of n rows, n * count / rows, rounded up or down.
    chosen = np.arange(len(order), dtype=np.int64) * count % max(1, len(order)) < count
    return np.sort(order[chosen])


class Window(NamedTuple):
    """A stretch of an epoch whose examples come from a few shards alone.

    Attributes:
        low: position of its first example in the order of the epoch.
        high: one past its last.
        shards: numbers of the shards that it uses up; none named if it is the whole epoch.
    """

    low: int
    high: int
    shards: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A pure function from (seed, sampling, epoch, step) to the examples of each slot.

    The number of workers is not among its arguments: every minibatch is cut into the same
    slots, in any process. Steps are counted from 0 over the whole run.

    Attributes:
        seed: seed of the run.
        sampling: "shuffle" permutes the examples each epoch and takes them in order; "random"
            draws with replacement; "sequential" takes them as they are stored.
        examples: number of training examples, without those that are held out.
        batch_size: examples of a minibatch; the last of an epoch may be shorter.
        slot_size: examples of a slot; the last of a minibatch may be shorter.
        epochs: number of epochs.
        shards: examples of each shard, if "shuffle" is to go shard by shard: it then permutes the
            shards each epoch, takes ``window`` of them at a time, and permutes their examples.
        window: how many shards are mixed with each other.
        held_out: rows of the training set that are in no minibatch, ascending; see
            `validation_rows`. The counts of ``shards`` are without them.
    """

    seed: int
    sampling: str
    examples: int
    batch_size: int
    slot_size: int
    epochs: int
    shards: tuple[int, ...] = ()
    window: int = 1
    held_out: NDArray[np.int64] = field(
        default_factory=lambda: np.empty(0, np.int64), compare=False, repr=False
    )

    @cached_property
    def trained(self) -> NDArray[np.int64]:
        """The rows of the training set that are trained on, ascending, shape (examples,)."""
        rows = np.arange(self.examples + len(self.held_out), dtype=np.int64)
        return np.delete(rows, self.held_out)

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

    @property
    def most_examples(self) -> int:
        """Examples of a full slot."""
        return min(self.slot_size, self.batch_size)

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

    def windows(self, epoch: int) -> list[Window]:
        """The windows of an epoch, in their order; one for all, unless it goes shard by shard."""
        if not self.shards or self.sampling != "shuffle":
            return [Window(0, self.examples, ())]
        mixed = _permutation([self.seed, _SHARDS_STREAM, epoch], len(self.shards)).tolist()
        parts = [tuple(mixed[i : i + self.window]) for i in range(0, len(mixed), self.window)]
        ends = np.cumsum([0, *(sum(self.shards[shard] for shard in part) for part in parts)])
        return [
            Window(low, high, part)
            for (low, high), part in zip(pairwise(ends.tolist()), parts, strict=True)
        ]

    @cached_property
    def _shard_starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *self.shards])

    def window_order(self, epoch: int, number: int, window: Window) -> NDArray[np.int64]:
        """The examples of one window in the order in which they are used.

        Args:
            epoch: from 0.
            number: of the window within the epoch, from 0.
            window: that one of `windows`.

        Only the raw bits of PCG64 are used, which numpy keeps stable over its versions, and a
        stable sort: the order does not depend on the version of numpy.
        """
        found = self._among_trained(epoch, number, window)
        return self.trained[found] if len(self.held_out) else found

    def _among_trained(self, epoch: int, number: int, window: Window) -> NDArray[np.int64]:
        """The same, numbered among the rows that are trained on."""
        if self.sampling == "sequential":
            return np.arange(self.examples, dtype=np.int64)
        if self.sampling == "random":
            bits = _bits([self.seed, _ORDER_STREAM, epoch], self.examples)
            return (bits % np.uint64(self.examples)).astype(np.int64)
        if not window.shards:
            return _permutation([self.seed, _ORDER_STREAM, epoch], self.examples)
        starts = self._shard_starts
        rows = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in window.shards])
        key = [self.seed, _WINDOW_STREAM, epoch, number]
        return rows[_permutation(key, len(rows))]

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The examples of an epoch in the order in which they are used, shape (examples,)."""
        windows = enumerate(self.windows(epoch))
        parts = [self.window_order(epoch, number, window) for number, window in windows]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def indices(self, step: int, slot: int) -> NDArray[np.int64]:
        """The examples of one slot. Use `order` once an epoch where speed matters."""
        low, high = self.slot(step, slot)
        return self.order(self.epoch_of(step))[low:high]


def _bits(key: Sequence[int], number: int) -> NDArray[np.uint64]:
    return np.random.PCG64(np.random.SeedSequence(key)).random_raw(number)


def _permutation(key: Sequence[int], number: int) -> NDArray[np.int64]:
    """A stable sort of random bits; where no two are equal, any sort is one, and quicker."""
    bits = _bits(key, number)
    found = np.argsort(bits)
    ordered = bits[found]
    if (ordered[1:] == ordered[:-1]).any():
        found = np.argsort(bits, kind="stable")
    return found.astype(np.int64, copy=False)


_KEPT = 3
"""Windows whose order is kept: leases of two mix around an end, and the next one is prepared."""


class EpochOrder:
    """Looks up what `Plan.order` says, without making the order of a whole epoch.

    Args:
        plan: whose.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._windows: dict[int, list[Window]] = {}
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def examples(self, epoch: int, low: int, high: int) -> NDArray[np.int64]:
        """The examples at positions [low, high) of an epoch, not to be written to."""
        parts = []
        while low < high:
            number = self.window_at(epoch, low)
            window = self._of(epoch)[number]
            end = min(high, window.high)
            parts.append(self._order(epoch, number)[low - window.low : end - window.low])
            low = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def window_at(self, epoch: int, position: int) -> int:
        """The number of the window that a position lies in."""
        return bisect_right(self._of(epoch), position, key=lambda window: window.low) - 1

    def shards_from(self, epoch: int, number: int) -> list[int]:
        """The shards in the order of need, from a window to the end of the next epoch."""
        found = [shard for window in self._of(epoch)[number:] for shard in window.shards]
        if epoch + 1 < self._plan.epochs:
            found += [shard for window in self._of(epoch + 1) for shard in window.shards]
        return found

    def _of(self, epoch: int) -> list[Window]:
        if epoch not in self._windows:
            for other in [other for other in self._windows if abs(other - epoch) > 1]:
                del self._windows[other]
            self._windows[epoch] = self._plan.windows(epoch)
        return self._windows[epoch]

    def _order(self, epoch: int, number: int) -> NDArray[np.int64]:
        key = (epoch, number)
        if key not in self._orders:
            while len(self._orders) >= _KEPT:
                del self._orders[min(self._orders)]
            self._orders[key] = self._plan.window_order(epoch, number, self._of(epoch)[number])
        return self._orders[key]
