"""A channel that drops, duplicates and delays pushes on purpose, for chaos runs."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distsgd.core.chaos import PUSH_FAULTS, Chaos, Fault
from distsgd.core.messages import Decision, Message, Push
from distsgd.data.folder_files import open_inside, read_inside
from distsgd.data.system import pause
from distsgd.transport.base import Channel, Reply

__all__ = ["Deliver", "FaultyChannel", "PushFaults", "Tally", "faulty_push", "read_tally"]

Deliver = Callable[[int, Push], list[Decision]]
"""Gives a server a worker's push; returns what it decides."""

_COLUMNS = ("answers", "slots", *PUSH_FAULTS)
_ROW_BYTES = 8 * len(_COLUMNS)


class Tally:
    """Counts of a worker's answers and faults in a mapped file, which survives its death.

    Args:
        path: the file, created if missing. Where it cannot be (on another node without the
            folder) the counts are kept in memory only.
        worker: number of the worker, which alone writes to its row.
    """

    def __init__(self, path: Path, worker: int) -> None:
        end = (worker + 1) * _ROW_BYTES
        try:
            file = open_inside(path, os.O_RDWR | os.O_CREAT)
            try:
                os.posix_fallocate(file, 0, end)  # never makes it shorter
                self._row = np.frombuffer(mmap.mmap(file, end), np.int64)[worker * len(_COLUMNS) :]
            finally:
                os.close(file)
        except OSError:
            self._row = np.zeros(len(_COLUMNS), np.int64)

    def answered(self, slots: int) -> int:
        """Count one answer over this many slots; returns the number before it."""
        before = int(self._row[0])
        self._row[:2] += (1, slots)
        return before

    def count_fault(self, fault: str) -> None:
        """Count one fault."""
        self._row[_COLUMNS.index(fault)] += 1


def read_tally(path: Path) -> dict[str, int]:
    """The sums over all workers: "answers", "slots", and each fault of pushes."""
    try:
        content = read_inside(path)
    except FileNotFoundError:
        content = b""
    rows = np.frombuffer(content, np.int64).reshape(-1, len(_COLUMNS))
    return {name: int(total) for name, total in zip(_COLUMNS, rows.sum(axis=0), strict=True)}


class PushFaults:
    """Decides the faults of each push of one worker, counts them, and carries out delays.

    Args:
        chaos: the faults.
        worker: number of the worker.
        tally: where faults are counted.
        sleep: waits for a number of seconds.
    """

    def __init__(
        self, chaos: Chaos, worker: int, tally: Tally, sleep: Callable[[float], None] = pause
    ) -> None:
        self._chaos, self._worker, self._tally, self.sleep = chaos, worker, tally, sleep

    def of(self, push: Push) -> dict[str, Fault]:
        """The faults of a push, by name; a delay has passed when this returns."""
        found = self._chaos.of_push(self._worker, self._tally.answered(len(push.losses)))
        if "drop-push" in found:
            found.pop("dup-push", None)  # a dropped push cannot be duplicated
        for name in found:
            self._tally.count_fault(name)
        if delay := found.get("delay"):
            self.sleep(delay.seconds)
        return found


class FaultyChannel:
    """Another channel, with faults. See `distsgd.transport.base.Channel`.

    A dropped push reaches no server. The worker is silent for a while, as if it waited for an
    answer, and then asks for work again.

    Args:
        inner: the channel that is wrapped, with its shared memory.
        faults: the faults of the pushes.
    """

    def __init__(self, inner: Channel, faults: PushFaults) -> None:
        self.name, self.buffer, self.descriptor = inner.name, inner.buffer, inner.descriptor
        self._inner, self._faults = inner, faults
        self._again: Push | None = None

    def send(self, message: Message | None) -> None:
        """See `Channel.send`."""
        if not isinstance(message, Push):
            self._inner.send(message)
            return
        found = self._faults.of(message)
        if dropped := found.get("drop-push"):
            self._faults.sleep(dropped.seconds)
            self._inner.send(None)
            return
        if "dup-push" in found:
            # The server may add to the gradients that it was sent.
            self._again = message._replace(gradients=message.gradients.copy())
        self._inner.send(message)

    def receive(self) -> Reply | None:
        """See `Channel.receive`; a duplicated push is sent again after the reply to the first.

        Not earlier: where memory is shared, the two ends take turns.
        """
        work, again = self._inner.receive(), self._again
        self._again = None
        if work is None or again is None:
            return work
        self._inner.send(again)
        return self._inner.receive()


def faulty_push(deliver: Deliver, faults: PushFaults) -> Deliver:
    """Wrap the ``push`` of a server in the worker's process, with faults."""

    def push(worker: int, push: Push) -> list[Decision]:
        found = faults.of(push)
        if "drop-push" in found:
            return []
        decisions = deliver(worker, push)
        return decisions + deliver(worker, push) if "dup-push" in found else decisions

    return push
