"""How a training is asked to end early: at a whole update, with its checkpoint written."""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager, nullcontext
from types import FrameType

from distsgd.errors import TrainingInterrupted

__all__ = ["NEVER", "FirstCtrlC", "Stop", "Stopping"]


class Stop:
    """Asked after every update whether to end there; this one never says so."""

    def __call__(self) -> bool:
        """Whether training should end."""
        return False


Stopping = AbstractContextManager[Stop]
"""Entered when training begins. What ends a process before that leaves nothing behind."""

NEVER: Stopping = nullcontext(Stop())
"""Nothing asks: a signal does what it does in the process anyway."""


class FirstCtrlC(Stop):
    """While entered, the first Ctrl-C ends a training well; the next is a KeyboardInterrupt.

    It takes the place of Python's own handler alone, and for that time. Where the caller has
    another one, or trains outside the main thread, signals are the caller's.
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
        """Pass a Ctrl-C on to the caller, once the run has been kept.

        Raises:
            TrainingInterrupted: one has come.
        """
        if self._received:
            raise TrainingInterrupted(run_dir, step)
