"""A simulated fleet: how fast its workers and their links are, and who fails when.

A virtual clock, and copies of W that simulated workers share.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from statistics import NormalDist
from typing import Any

import numpy as np

from distsgd.core.arrays import Floats

__all__ = ["Fleet", "Jitter", "SharedWeights", "VirtualClock"]


@dataclass(frozen=True)
class Jitter:
    """Random slowness: each lease takes a random multiple of its usual time.

    Attributes:
        name: one of `JITTERS`.
        numbers: its parameters.
    """

    name: str = "none"
    numbers: tuple[float, ...] = ()

    def draw(self, random: Random) -> float:
        """The next multiple."""
        return JITTERS[self.name](random, *self.numbers)


def _none(random: Random) -> float:
    """Always 1."""
    return 1.0


def _lognormal(random: Random, sigma: float) -> float:
    """exp(sigma z), z standard normal: the median is 1."""
    uniform = max(random.random(), 2.0**-53)
    return math.exp(sigma * NormalDist().inv_cdf(uniform))


def _pareto(random: Random, alpha: float) -> float:
    """(1 - u)**(-1 / alpha), u uniform on [0, 1): at least 1, above x with chance x**-alpha."""
    return float((1.0 - random.random()) ** (-1.0 / alpha))


def _pause(random: Random, chance: float, factor: float) -> float:
    """A factor now and then, otherwise 1."""
    return factor if random.random() < chance else 1.0


JITTERS: dict[str, Callable[..., float]] = {
    "none": _none,
    "lognormal": _lognormal,
    "pareto": _pareto,
    "pause": _pause,
}
"""Each takes a source of random numbers and its parameters. Only ``Random.random`` is drawn
from, which Python keeps stable over its versions."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Workers on a virtual clock. All times are virtual seconds.

    A lease takes, from the moment it is granted::

        latency + bytes of W / bandwidth              (the worker pulls)
        + examples / speed * slowness * jitter        (it computes)
        + latency + bytes of its sums / bandwidth     (it pushes)

    Each worker has a link of its own to each server; with several servers, each carries its range.
    Servers answer at once.

    Attributes:
        workers: how many.
        speed: examples a second that a usual worker computes.
        slow: (count, factor) pairs: the first ``count`` workers are ``factor`` times slower,
            the next pair is about the workers after them, and so on.
        jitter: random slowness, drawn for each lease.
        latency: seconds that a message takes, however small.
        bandwidth: bytes a second of a link, each way.
        failures: (worker, time) pairs: it dies, and what it was computing is lost.
        rejoins: (worker, time) pairs: it comes back and asks for work.
    """

    workers: int = 8
    speed: float = 250_000.0
    slow: tuple[tuple[int, float], ...] = ()
    jitter: Jitter = Jitter()
    latency: float = 0.0
    bandwidth: float = math.inf
    failures: tuple[tuple[int, float], ...] = ()
    rejoins: tuple[tuple[int, float], ...] = ()

    def slowness(self) -> list[float]:
        """For each worker, how many times slower than usual it is."""
        factors = [factor for count, factor in self.slow for _ in range(count)]
        return (factors + [1.0] * self.workers)[: self.workers]

    def transfer(self, size: float) -> float:
        """Seconds that a message of ``size`` bytes takes."""
        return self.latency + size / self.bandwidth

    def random(self, seed: int, worker: int) -> Random:
        """The source of a worker's jitter: independent of all others, the same every time."""
        return Random(f"distsgd simulated jitter/{seed}/{worker}")


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
    """Copies of leased W: one for each version in use."""

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
        """W at a version in use."""
        return self._copies[version]

    def release(self, version: int) -> None:
        """Release a version; the copy is reused after its last holder."""
        self._holders[version] -= 1
        if not self._holders[version]:
            del self._holders[version]
            self._spare.append(self._copies.pop(version))

    def __len__(self) -> int:
        """Copies that are held."""
        return len(self._copies)
