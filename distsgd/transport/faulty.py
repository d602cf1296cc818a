"""A channel that loses, doubles and delays pushes on purpose, for `distsgd train --chaos`."""

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
    """What a worker has computed and suffered, kept where its death loses nothing: a mapped file.

    Args:
        path: the file, made if it is not there. Where it cannot be (on another node without the
            folder) the worker counts for itself alone.
        worker: number of the worker, whose row nobody else writes to.
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
        """Count one answer, over so many slots; returns how many there were before."""
        before = int(self._row[0])
        self._row[:2] += (1, slots)
        return before

    def suffered(self, fault: str) -> None:
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
    """Decides what befalls each push of one worker, counts it, and waits where it is to wait.

    Args:
        chaos: the faults.
        worker: whose pushes.
        tally: where they are counted.
        sleep: waits so many seconds.
    """

    def __init__(
        self, chaos: Chaos, worker: int, tally: Tally, sleep: Callable[[float], None] = pause
    ) -> None:
        self._chaos, self._worker, self._tally, self.sleep = chaos, worker, tally, sleep

    def befalling(self, push: Push) -> dict[str, Fault]:
        """The faults, by name; a delay is over when this returns."""
        found = self._chaos.of_push(self._worker, self._tally.answered(len(push.losses)))
        if "drop-push" in found:
            found.pop("dup-push", None)  # what is lost is lost
        for name in found:
            self._tally.suffered(name)
        if delay := found.get("delay"):
            self.sleep(delay.seconds)
        return found


class FaultyChannel:
    """Another channel, with faults. See `distsgd.transport.base.Channel`.

    A push that is dropped reaches no server. The worker is silent for a while, as if it waited for
    an answer, and then asks for work anew.

    Args:
        inner: the channel, whole; memory that it shares is shared here too.
        faults: what befalls the pushes.
    """

    def __init__(self, inner: Channel, faults: PushFaults) -> None:
        self.name, self.buffer = inner.name, inner.buffer
        self._inner, self._faults = inner, faults
        self._again: Push | None = None

    def send(self, message: Message | None) -> None:
        """See `Channel.send`."""
        if not isinstance(message, Push):
            self._inner.send(message)
            return
        found = self._faults.befalling(message)
        if dropped := found.get("drop-push"):
            self._faults.sleep(dropped.seconds)
            self._inner.send(None)
            return
        if "dup-push" in found:
            # The server may add others to what it has been sent.
            self._again = message._replace(gradients=message.gradients.copy())
        self._inner.send(message)

    def receive(self) -> Reply | None:
        """See `Channel.receive`; a push that is doubled goes out again after the first's answer.

        Not before: the two ends take turns, where they share memory.
        """
        work, again = self._inner.receive(), self._again
        self._again = None
        if work is None or again is None:
            return work
        self._inner.send(again)
        return self._inner.receive()


def faulty_push(deliver: Deliver, faults: PushFaults) -> Deliver:
    """The same for a server in the worker's process: its ``push``, with faults."""

    def push(worker: int, push: Push) -> list[Decision]:
        found = faults.befalling(push)
        if "drop-push" in found:
            return []
        decisions = deliver(worker, push)
        return decisions + deliver(worker, push) if "dup-push" in found else decisions

    return push
