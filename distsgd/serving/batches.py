"""Rows of requests that come at the same time are computed together.

A request waits for others only while others are being received, and no longer than `Limits.delay`:
a single client never waits. What is large is computed in a thread, so that the event loop goes on
answering; a handful of rows takes less time than to wake a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.data.system import OWN_THREAD
from distsgd.serving.limits import Limits
from distsgd.training.predictor import Predictor

__all__ = ["Batches", "Full"]

_AT_ONCE = 256
"""Rows from which a batch waits for no more."""

_LITTLE = 1_000_000
"""Multiplications that the event loop does itself; a few tenths of a millisecond."""


class Full(Exception):
    """Too many rows are waiting."""


@dataclass(eq=False)
class _Waiting:
    predictor: Predictor
    rows: NDArray[Any]
    done: asyncio.Future[NDArray[np.float64]]


class Batches:
    """Computes probabilities for many requests. All methods belong to one event loop.

    Args:
        limits: of waiting rows and of the delay.
        observe: called with the number of rows of each batch.
    """

    def __init__(self, limits: Limits, observe: Callable[[int], None] = lambda rows: None) -> None:
        self._limits, self._observe = limits, observe
        self._waiting: list[_Waiting] = []
        self._rows = self._open = 0
        self._timer: asyncio.TimerHandle | None = None
        self._computing = self._soon = False
        self._thread = ThreadPoolExecutor(1, f"{OWN_THREAD}-predict")

    @property
    def waiting(self) -> int:
        """Rows that wait or are being computed."""
        return self._rows

    def begin(self) -> None:
        """A request has begun that will bring rows."""
        self._open += 1

    def end(self) -> None:
        """A request that had begun has ended, with or without rows."""
        self._open -= 1
        self._maybe_start()

    async def probabilities(
        self, predictor: Predictor, rows: NDArray[Any]
    ) -> NDArray[np.float64]:  # fmt: skip
        """The probabilities of rows that `Predictor.rows` returned, shape (rows, classes).

        Raises:
            Full: too many rows are waiting.
        """
        if self._rows + len(rows) > self._limits.waiting:
            raise Full
        one = _Waiting(predictor, rows, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        self._rows += len(rows)
        self._maybe_start()
        try:
            return await one.done
        finally:
            self._rows -= len(rows)

    def close(self) -> None:
        """End the thread, after what it computes."""
        self._thread.shutdown()

    def _maybe_start(self) -> None:
        if not self._waiting or self._computing:
            return
        loop = asyncio.get_running_loop()
        if len(self._waiting) >= self._open or self._rows >= _AT_ONCE:
            # After the requests that the event loop has already received.
            if not self._soon:
                self._soon = True
                loop.call_soon(self._start)
        elif self._timer is None:
            self._timer = loop.call_later(self._limits.delay, self._start)

    def _start(self) -> None:
        """Compute the rows that wait, of the requests that are served by the same predictor."""
        self._soon = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._computing or not self._waiting:
            return
        predictor, batch, rows = self._waiting[0].predictor, list[_Waiting](), 0
        for one in self._waiting:
            if one.predictor is predictor and (not batch or rows + len(one.rows) <= _AT_ONCE):
                batch.append(one)
                rows += len(one.rows)
        self._waiting = [one for one in self._waiting if one not in batch]
        self._observe(rows)
        if rows * predictor.parameters <= _LITTLE:
            try:
                found = _computed(predictor, batch)
            except Exception as error:
                self._failed(batch, error)
            else:
                self._finished(batch, found)
            return
        self._computing = True
        loop = asyncio.get_running_loop()
        computing = loop.run_in_executor(self._thread, _computed, predictor, batch)
        computing.add_done_callback(lambda done: self._computed(batch, done))

    def _computed(
        self, batch: list[_Waiting], done: asyncio.Future[NDArray[np.float64]]
    ) -> None:  # fmt: skip
        self._computing = False
        error = done.exception()
        if error is None:
            self._finished(batch, done.result())
        else:
            self._failed(batch, error)

    def _finished(self, batch: list[_Waiting], found: NDArray[np.float64]) -> None:
        low = 0
        for one in batch:
            if not one.done.done():  # its client may have gone
                one.done.set_result(found[low : low + len(one.rows)])
            low += len(one.rows)
        self._again()

    def _failed(self, batch: list[_Waiting], error: BaseException) -> None:
        for one in batch:
            if not one.done.done():
                one.done.set_exception(error)
        self._again()

    def _again(self) -> None:
        if self._waiting and not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._start)


def _computed(predictor: Predictor, batch: list[_Waiting]) -> NDArray[np.float64]:
    rows = batch[0].rows if len(batch) == 1 else np.concatenate([one.rows for one in batch])
    return predictor.probabilities_of_rows(rows)
