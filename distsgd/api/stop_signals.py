"""Ctrl-C and SIGTERM: the first asks for a good end, the second leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["StopSignals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While entered, remembers that a signal has come.

    Outside the main thread nothing is installed, and nothing ever comes.

    Attributes:
        received: the signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether training should stop."""
        return self.received is not None

    def __enter__(self) -> StopSignals:
        self.install()
        return self

    def install(self) -> None:
        """Install the handlers, also again: `ray.init` puts its own over that of SIGTERM."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.signal(number, self._handle)
                self._before.setdefault(number, before)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            # The processes of our own Ray are bound to end with this one.
            os._exit(128 + number)
        self.received = number

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                signal.signal(number, before)
