"""What is pushed to pages: views of runs, made once for all pages that look at the same.

A feed polls times and sizes of the files of its runs. Only when one has changed, and at most
every 0.8 s, it reads what was appended and tells its pages the difference.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from distsgd.watch.changes import change

__all__ = ["Feed", "encoded"]

_POLL = 0.4
_AT_MOST = 0.8
"""Seconds between two looks at files, and between two readings of a run."""

_WAITING = 64
"""Messages that a page may leave unread before it is disconnected, and starts again."""


def encoded(content: Any) -> str:
    """JSON in one line."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


class Feed:
    """One value that changes, and the pages that follow it.

    Args:
        stamp: something that is equal as long as the value cannot have changed; cheap.
        value: makes the value, a JSON object.
        poll: seconds between two stamps.
        at_most: seconds between two values.
    """

    def __init__(
        self,
        stamp: Callable[[], object],
        value: Callable[[], dict[str, Any]],
        poll: float = _POLL,
        at_most: float = _AT_MOST,
    ) -> None:
        self._stamp, self._make, self._poll, self._at_most = stamp, value, poll, at_most
        self._pages: set[asyncio.Queue[str | None]] = set()
        self._value: dict[str, Any] | None = None
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._seen: object = None

    async def join(self) -> asyncio.Queue[str | None]:
        """A queue whose first message is the whole value, and the others changes; None ends it."""
        async with self._lock:
            if self._value is None:
                await self._read()
            queue: asyncio.Queue[str | None] = asyncio.Queue(_WAITING)
            queue.put_nowait(encoded({"v": self._value}))
            self._pages.add(queue)
            if self._task is None:
                self._task = asyncio.create_task(self._follow())
        return queue

    @property
    def idle(self) -> bool:
        """Whether no page follows it."""
        return not self._pages

    def leave(self, queue: asyncio.Queue[str | None]) -> None:
        """Forget a page; the last one to leave ends the polling."""
        self._pages.discard(queue)
        if not self._pages:
            self.end()

    def end(self) -> None:
        """Stop polling, and end all pages."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._value = None
        for queue in self._pages:
            _put(queue, None)

    async def _read(self) -> dict[str, Any] | None:
        """Read the value again; returns what has changed."""
        self._seen = await asyncio.to_thread(self._stamp)
        value = await asyncio.to_thread(self._make)
        found = None if self._value is None else change(self._value, value)
        self._value = value
        return found

    async def _follow(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(self._poll)
            now = await asyncio.to_thread(self._stamp)
            if now == self._seen:
                continue
            await asyncio.sleep(max(0.0, last + self._at_most - time.monotonic()))
            async with self._lock:  # a page that joins gets the new value, or the change to it
                found = await self._read()
                if found is not None:
                    self._tell(encoded(found))
            last = time.monotonic()

    def _tell(self, message: str) -> None:
        for queue in list(self._pages):
            if not _put(queue, message):
                self._pages.discard(queue)


def _put(queue: asyncio.Queue[str | None], message: str | None) -> bool:
    """Hand a message to a page; one that does not read is disconnected."""
    try:
        queue.put_nowait(message)
        return True
    except asyncio.QueueFull:
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)
        return False
