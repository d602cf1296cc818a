"""Callbacks: user code that follows a training from a thread of its own.

A `Reporter` is called by the training itself, so that its errors and its time are the training's.
A callback can neither stop nor delay a training: its events wait in a bounded queue, those that
find no room are dropped, and after its first error it is not called again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

from distsgd.config.settings import TrainConfig
from distsgd.data.system import OWN_THREAD
from distsgd.engine.events import Progress
from distsgd.errors import UsageError, in_short
from distsgd.training.results import EpochRow, Reporter, TrainResult

__all__ = ["Callback", "Followers", "as_callbacks"]

_MOST_WAITING = 256
"""Events in the queue of a callback."""

_PAUSE_SECONDS = 0.05
"""For how long the thread lets events collect."""

_LAST_SECONDS = 10.0
"""How long the end of a training waits for callbacks that still work."""


class Callback:
    """Follows a training from a thread of its own. Methods do nothing; override what you need.

    `started` comes first and `end` last, each once. If the queue of 256 events is full, the oldest
    `progress` is dropped.
    """

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        """The run folder exists, and training starts, or resumes.

        Args:
            config: all settings.
            run_dir: the run folder.
            total_steps: updates of the whole run.
        """

    def progress(self, progress: Progress) -> None:
        """Some updates were applied (`log_every`)."""

    def epoch(self, row: EpochRow) -> None:
        """An epoch has ended, and was measured."""

    def notice(self, text: str) -> None:
        """Something happened that does not end the training, such as the death of a worker."""

    def end(self, result: TrainResult | None, error: BaseException | None) -> None:
        """The training has ended.

        Args:
            result: what it came to; None after an error.
            error: what ended it; None otherwise.
        """


_CALLS = ("started", "progress", "epoch", "notice", "end")


def as_callbacks(value: Any) -> list[Callback]:
    """A list of callbacks, empty for None.

    Raises:
        UsageError: it is something else.
    """
    found = [] if value is None else [value] if isinstance(value, Callback) else value
    if not isinstance(found, list | tuple):
        raise UsageError(
            f"callbacks cannot be a {type(value).__name__}", "Give a list of distsgd.Callback"
        )
    for one in found:
        if isinstance(one, type) or not all(callable(getattr(one, call, None)) for call in _CALLS):
            raise UsageError(
                f"a callback cannot be {one if isinstance(one, type) else type(one).__name__}",
                "Give an object of a class that extends distsgd.Callback and overrides some of "
                + ", ".join(_CALLS),
            )
    return list(found)


class _Follower:
    """One callback, its queue and its thread.

    Attributes:
        trouble: messages for the user that were not shown yet.
        dropped: events that found no room.
    """

    def __init__(self, callback: Callback) -> None:
        self._callback, self.name = callback, type(callback).__name__
        self._changed = threading.Condition()
        self._waiting: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._ended = self._failed = False
        self.trouble: list[str] = []
        self.dropped = 0
        self._thread = threading.Thread(
            target=self._work, name=f"{OWN_THREAD}-{self.name}", daemon=True
        )
        self._thread.start()

    def post(self, call: str, *arguments: Any) -> None:
        """Put an event into the queue; drops the oldest progress, or this one, if it is full."""
        with self._changed:
            if self._failed:
                return
            if len(self._waiting) >= _MOST_WAITING and not self._make_room() and call != "end":
                self.dropped += 1
                return
            self._waiting.append((call, arguments))
            if len(self._waiting) == 1:
                self._changed.notify()

    def _make_room(self) -> bool:
        for place, (call, _) in enumerate(self._waiting):
            if call == "progress":
                del self._waiting[place]
                self.dropped += 1
                return True
        return False

    def close(self, seconds: float) -> bool:
        """Let the thread end once the queue is empty; returns whether it has."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def _work(self) -> None:
        # At the usual priority: while it waits for a processor, it may hold the interpreter's lock.
        while events := self._next():
            for call, arguments in events:
                try:
                    getattr(self._callback, call)(*arguments)
                except BaseException as error:
                    self._fail(call, error)
                    return

    def _next(self) -> list[tuple[str, tuple[Any, ...]]]:
        """The events that wait, at least one; none at the end.

        Those of some time are taken at once, as a thread that wakes interrupts the training.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            self._changed.wait_for(lambda: self._ended, _PAUSE_SECONDS)
            events = list(self._waiting)
            self._waiting.clear()
            return events

    def _fail(self, call: str, error: BaseException) -> None:
        with self._changed:
            self._failed = True
            self._waiting.clear()
            self.trouble.append(
                f"the callback {self.name} has failed in {call}, and is not called again: "
                f"{type(error).__name__}: {in_short(error)}"
            )


class Followers(Reporter):
    """A reporter that passes everything on: to others at once, to callbacks through their queues.

    Within ``with``, the training runs with it as its reporter; `end` tells the result.

    Args:
        reporters: called in the thread of the training, in this order.
        callbacks: each called in a thread of its own.
    """

    def __init__(self, reporters: Sequence[Reporter], callbacks: Sequence[Callback] = ()) -> None:
        self._reporters, self._callbacks = reporters, callbacks
        self._followers: list[_Follower] = []
        self._result: TrainResult | None = None

    def __enter__(self) -> Followers:
        self._followers = [_Follower(callback) for callback in self._callbacks]
        return self

    def end(self, result: TrainResult) -> None:
        """The training has a result."""
        self._result = result

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for follower in self._followers:
            follower.post("end", self._result, error)
        give_up = monotonic() + _LAST_SECONDS
        for follower in self._followers:
            if not follower.close(give_up - monotonic()):
                follower.trouble.append(
                    f"the callback {follower.name} is still at work after {_LAST_SECONDS:g} s, "
                    "and is left to itself"
                )
            if follower.dropped:
                follower.trouble.append(
                    f"the callback {follower.name} was too slow: "
                    f"it did not get {follower.dropped} events"
                )
        self._show_trouble()

    def _show_trouble(self) -> None:
        """Report what went wrong in callbacks, in the thread of the training."""
        for follower in self._followers:
            while follower.trouble:
                text = follower.trouble.pop(0)
                for reporter in self._reporters:
                    reporter.notice(text)

    def _post(self, call: str, *arguments: Any) -> None:
        for follower in self._followers:
            follower.post(call, *arguments)
        self._show_trouble()

    def stage(self, name: str) -> None:
        """See `Reporter`."""
        for reporter in self._reporters:
            told = getattr(reporter, "stage", None)
            if told is not None:  # a reporter may have been written before there were stages
                told(name)

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        """See `Reporter`."""
        for reporter in self._reporters:
            reporter.started(config, run_dir, total_steps)
        self._post("started", config, run_dir, total_steps)

    def progress(self, progress: Progress) -> None:
        """See `Reporter`."""
        for reporter in self._reporters:
            reporter.progress(progress)
        self._post("progress", progress)

    def epoch(self, row: EpochRow) -> None:
        """See `Reporter`."""
        for reporter in self._reporters:
            reporter.epoch(row)
        self._post("epoch", row)

    def notice(self, text: str) -> None:
        """See `Reporter`."""
        for reporter in self._reporters:
            reporter.notice(text)
        self._post("notice", text)

    def ended(self) -> None:
        """See `Reporter`."""
        for reporter in self._reporters:
            reporter.ended()
