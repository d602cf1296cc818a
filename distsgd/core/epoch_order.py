"""The examples at positions of an epoch, of a few windows at a time."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from distsgd.core.plan import Plan, Window

__all__ = ["EpochOrder"]

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
