"""How long leases take, and which are overdue because their workers are slow or hang."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from distsgd.core.messages import Lease

__all__ = ["HANG_SECONDS", "LeaseTimes"]

_LEAST_SECONDS = 1.0
_TIMES_LONGER = 20.0
_TIMES_HUNG = 200.0
_SHARE_OF_NEW = 0.1
_STANDSTILL_SECONDS = 5.0
HANG_SECONDS = 10.0
"""Least time after which a worker is considered to hang."""


@dataclass(slots=True)
class _Out:
    since: float
    slots: int


class LeaseTimes:
    """Measures the time of a slot, and bounds that of a lease by multiples of it.

    Times are seconds of one clock, given by the caller. If the host itself stood still for some
    seconds, that time does not count.

    Args:
        hang_seconds: least time after which a worker is considered to hang.
    """

    def __init__(self, hang_seconds: float = HANG_SECONDS) -> None:
        self._hang_seconds = hang_seconds
        self._out: dict[int, _Out] = {}
        self._late: dict[int, _Out] = {}
        self._hung = Counter[int]()
        self._slot_seconds: float | None = None
        self._looked: float | None = None

    def granted(self, worker: int, lease: Lease, now: float) -> None:
        """A worker has been given a lease."""
        self._out[worker] = _Out(now, max(1, lease.last - lease.first) * lease.steps)

    def answered(self, worker: int, now: float) -> None:
        """A worker has answered; update the moving average of the time of a slot."""
        out = self._out.pop(worker, None)
        if out is None:
            self._late.pop(worker, None)
            return
        if self._hung:
            self._hung.pop(worker, None)
        took = (now - out.since) / out.slots
        before = took if self._slot_seconds is None else self._slot_seconds
        self._slot_seconds = before + _SHARE_OF_NEW * (took - before)

    def lost(self, worker: int) -> None:
        """A worker has died."""
        self._out.pop(worker, None)
        self._late.pop(worker, None)

    def overdue(self, now: float) -> list[int]:
        """The workers whose leases may be given to others too; each is returned once."""
        self._look(now)
        if self._slot_seconds is None:
            return []
        found = [
            worker for worker, out in self._out.items() if now - out.since > self.bound(out.slots)
        ]
        for worker in found:
            self._late[worker] = self._out.pop(worker)
        return found

    def hung(self, now: float) -> list[int]:
        """The workers that are considered to hang; each is returned once.

        The replacement of a worker that hung gets twice the time: the lease may just take longer.
        """
        self._look(now)
        every = self._out | self._late
        found = [
            worker for worker, out in every.items()
            if now - out.since > self.hang_bound(out.slots) * 2 ** self._hung[worker]
        ]  # fmt: skip
        for worker in found:
            self.lost(worker)
            self._hung[worker] += 1
        return found

    def bound(self, slots: int) -> float:
        """Seconds after which a lease of this many slots is given to others too."""
        return max(_LEAST_SECONDS, _TIMES_LONGER * slots * (self._slot_seconds or 0.0))

    def hang_bound(self, slots: int) -> float:
        """Seconds after which the worker of such a lease is considered to hang."""
        return max(self._hang_seconds, _TIMES_HUNG * slots * (self._slot_seconds or 0.0))

    def _look(self, now: float) -> None:
        stood = now - (now if self._looked is None else self._looked)
        self._looked = now
        if stood > _STANDSTILL_SECONDS:
            for out in (*self._out.values(), *self._late.values()):
                out.since = min(now, out.since + stood)
