"""Whether a server gives its bytes fast enough: a slow one is named, a dripping one given up."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

__all__ = ["LEAST_BYTES", "Pace", "TooSlow"]

LEAST_BYTES = 64 << 10
"""That have to come in each `_WINDOW_SECONDS`: 3.3 KB/s."""
_WINDOW_SECONDS = 20.0

_SLOW_SECONDS, _SLOW_BYTES = 10.0, 512 << 10
"""Fewer bytes than these in the first seconds are worth a word."""


class TooSlow(OSError):
    """A server gives next to nothing, and may go on doing so for days."""


class Pace:
    """Counts the bytes of one answer, against the clock.

    Args:
        slow: called once, with words such as "less than 512 KiB in 10 s", if it begins slowly.
        clock: in seconds.
    """

    def __init__(
        self, slow: Callable[[str], None] = lambda _: None, clock: Callable[[], float] = monotonic
    ) -> None:
        self._slow, self._clock = slow, clock
        self._begun = self._since = clock()
        self._came = self._came_since = 0
        self._named = False

    def count(self, size: int) -> None:
        """So many bytes have come since the last call, none if it is only time that has passed.

        Raises:
            TooSlow: fewer than `LEAST_BYTES` have come in 20 s.
        """
        now = self._clock()
        self._came += size
        self._came_since += size
        if now - self._begun >= _SLOW_SECONDS and not self._named:
            self._named = True
            if self._came < _SLOW_BYTES:
                self._slow(f"less than {_SLOW_BYTES >> 10} KiB in {_SLOW_SECONDS:g} s")
        if now - self._since >= _WINDOW_SECONDS:
            if self._came_since < LEAST_BYTES:
                raise TooSlow(f"less than {LEAST_BYTES >> 10} KiB in {_WINDOW_SECONDS:g} s")
            self._since, self._came_since = now, 0
