"""A thread that takes what the training leaves of the processors."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from distsgd.data.system import OWN_THREAD
from distsgd.engine.blas import one_blas_thread

__all__ = ["Background"]

_NICE = 19

Result = TypeVar("Result")


class Background:
    """Runs one thing at a time, for a caller that waits for it, at the lowest priority.

    The priority is the thread's own (Linux), since a process that has lowered its own may not
    raise it again.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, OWN_THREAD, _step_back)

    def run(self, what: Callable[[], Result]) -> Result:
        """What it returns, or raises."""

        def work() -> Result:
            with one_blas_thread(check_at_end=False):
                return what()

        return self._thread.submit(work).result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


def _step_back() -> None:
    with suppress(OSError):  # then it has the priority of all others
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
