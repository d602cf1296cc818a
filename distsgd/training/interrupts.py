"""Requests to end a training early, after a whole update and with a checkpoint."""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager, nullcontext
from types import FrameType

from distsgd.errors import TrainingInterrupted

__all__ = ["NEVER", "FirstCtrlC", "Stop", "Stopping"]


class Stop:
    """Called after every update: whether training should end there. This one never asks for it."""

    def __call__(self) -> bool:
        """Whether training should end."""
        return False


Stopping = AbstractContextManager[Stop]
"""Entered when training starts; what ends the process earlier leaves nothing behind."""

NEVER: Stopping = nullcontext(Stop())
"""No request: signals do what they do in the process anyway."""


class FirstCtrlC(Stop):
    """While entered, the first Ctrl-C ends a training after an update; the next is an exception.

    It replaces Python's own handler alone, and only while entered. If the caller has another
    handler, or trains outside the main thread, signals are left to the caller.
    """

    def __init__(self) -> None:
        self._received = False

    def __call__(self) -> bool:
        """Whether Ctrl-C has come."""
        return self._received

    def __enter__(self) -> FirstCtrlC:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            signal.default_int_handler(number, frame)
        self._received = True

    def __exit__(self, *_: object) -> None:
        if signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self, run_dir: str, step: int) -> None:
        """Pass a Ctrl-C on to the caller, once the run is saved.

        Raises:
            TrainingInterrupted: it was pressed.
        """
        if self._received:
            raise TrainingInterrupted(run_dir, step)
