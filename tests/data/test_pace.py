"""Which rates are slow, which are given up, and that a store's pauses are not."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

import pytest

from distsgd.data.remote.fetching import Pace, TooSlow

SLOW = ["less than 512 KiB in 10 s"]


def outcome(sizes: Iterable[int], seconds: float) -> tuple[list[str], float]:
    """What is said of bytes that come at such intervals, and when they are given up (or 100 s)."""
    now, said = 0.0, list[str]()
    pace = Pace(said.append, lambda: now)
    for size in sizes:
        now += seconds
        if now > 100:
            break
        try:
            pace.count(size)
        except TooSlow:
            return said, now
    return said, 100.0


@pytest.mark.parametrize(
    ("size", "seconds", "said", "until"),
    [
        (1, 1, SLOW, 20),
        (0, 1, SLOW, 20),
        (100, 0.1, SLOW, 20),
        (10_000, 1, SLOW, 100),
        (64 << 10, 15, SLOW, 100),
        (100_000, 1, [], 100),
        (16 << 20, 9, [], 100),
    ],
)
def test_a_steady_rate(size: int, seconds: float, said: list[str], until: float) -> None:
    found, ended = outcome(repeat(size), seconds)
    assert found == said and ended == pytest.approx(until, abs=0.2)


def test_one_that_begins_well_and_then_drips() -> None:
    said, ended = outcome([1 << 20] * 30 + [1] * 90, 1)
    assert said == [] and ended == 60  # the first 20 s in which next to nothing has come
