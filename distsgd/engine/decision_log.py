"""The coordinator's decisions, kept until every follower has taken them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from distsgd.transport.log_stream import Entry

__all__ = ["DecisionLog"]


class DecisionLog:
    """A queue with several readers.

    Args:
        readers: how many.
    """

    def __init__(self, readers: int) -> None:
        self._entries: deque[Entry] = deque()
        self._first = 0
        self._taken = [0] * readers

    def add(self, entries: Iterable[Entry]) -> None:
        """Append entries; without readers nothing is kept."""
        if self._taken:
            self._entries.extend(entries)

    def news(self, reader: int) -> bool:
        """Whether there is something that a reader has not taken."""
        return self._taken[reader] < self._first + len(self._entries)

    def take(self, reader: int) -> list[Entry]:
        """All that a reader has not taken yet."""
        skip = self._taken[reader] - self._first
        found = [entry for number, entry in enumerate(self._entries) if number >= skip]
        self._taken[reader] += len(found)
        while self._first < min(self._taken):
            self._entries.popleft()
            self._first += 1
        return found
