"""A virtual clock, and copies of W that simulated workers share."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from distsgd.core.arrays import Floats

__all__ = ["SharedWeights", "VirtualClock"]

Handler = Callable[..., Any]


class VirtualClock:
    """Calls in the order of their virtual times; those of one time in the order of asking.

    Attributes:
        now: virtual seconds since the start.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, int, Handler, tuple[Any, ...]]] = []
        self._asked = 0

    def at(self, time: float, handler: Handler, *arguments: Any) -> None:
        """Call ``handler`` at a virtual time that is not past."""
        heapq.heappush(self._calls, (time, self._asked, handler, arguments))
        self._asked += 1

    def run(self) -> Iterator[Any]:
        """Make the calls one after another, and yield what each returns."""
        while self._calls:
            self.now, _, handler, arguments = heapq.heappop(self._calls)
            yield handler(*arguments)


class SharedWeights:
    """Copies of W as leased: one for each version that somebody holds, however many do."""

    def __init__(self) -> None:
        self._copies: dict[int, Floats] = {}
        self._holders: dict[int, int] = {}
        self._spare: list[Floats] = []

    def hold(self, version: int, weights: Floats) -> None:
        """One more holder of a version; W is copied for the first."""
        if version not in self._copies:
            copy = self._spare.pop() if self._spare else np.empty_like(weights)
            np.copyto(copy, weights)
            self._copies[version] = copy
            self._holders[version] = 0
        self._holders[version] += 1

    def of(self, version: int) -> Floats:
        """W at a version that somebody holds."""
        return self._copies[version]

    def release(self, version: int) -> None:
        """One holder less; the last one's copy is used anew."""
        self._holders[version] -= 1
        if not self._holders[version]:
            del self._holders[version]
            self._spare.append(self._copies.pop(version))

    def __len__(self) -> int:
        """Copies that are held."""
        return len(self._copies)
