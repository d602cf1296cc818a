"""What a process does when: laps of one thread of work, for a timeline."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter_ns

__all__ = ["Span", "Trace", "Track"]

Span = tuple[str, int, int]
"""What was done, and from when to when, in nanoseconds of the node's monotonic clock."""

MOST_SPANS = 1_000_000
"""Kept of one track; what comes after is left out, so that a long run does not fill the memory."""


@dataclass(frozen=True)
class Track:
    """One line of the timeline.

    Attributes:
        name: of the process, such as "worker 0".
        spans: what it did, in order.
    """

    name: str
    spans: tuple[Span, ...]


class Trace:
    """Takes the time between one call and the next.

    Args:
        on: False makes every call do nothing.
    """

    def __init__(self, on: bool) -> None:
        self._on, self._last = on, perf_counter_ns()
        self._spans: list[Span] = []

    def start(self) -> None:
        """What has been done until now belongs to nothing."""
        if self._on:
            self._last = perf_counter_ns()

    def lap(self, name: str) -> None:
        """What has been done since the call before was this."""
        if self._on and len(self._spans) < MOST_SPANS:
            now = perf_counter_ns()
            self._spans.append((name, self._last, now))
            self._last = now

    def track(self, name: str) -> Track:
        """All laps, as those of the process of this name."""
        return Track(name, tuple(self._spans))
