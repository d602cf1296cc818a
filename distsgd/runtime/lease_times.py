"""How long leases take, and which has been out for too long: its worker hangs, or is very slow."""

from __future__ import annotations

from distsgd.core.messages import Lease

__all__ = ["LeaseTimes"]

_LEAST_SECONDS = 1.0
_TIMES_LONGER = 20.0
_SHARE_OF_NEW = 0.1


class LeaseTimes:
    """Measures the time of a slot, and bounds that of a lease by a multiple of it.

    Times are seconds of one clock, given by the caller.
    """

    def __init__(self) -> None:
        self._out: dict[int, tuple[float, int]] = {}  # since when, and how many slots
        self._slot_seconds: float | None = None

    def granted(self, worker: int, lease: Lease, now: float) -> None:
        """A worker has been given a lease."""
        self._out[worker] = now, max(1, lease.last - lease.first) * lease.steps

    def answered(self, worker: int, now: float) -> None:
        """It has come back; the mean moves a little towards what it took."""
        out = self._out.pop(worker, None)
        if out is None:
            return
        since, slots = out
        took = (now - since) / slots
        before = took if self._slot_seconds is None else self._slot_seconds
        self._slot_seconds = before + _SHARE_OF_NEW * (took - before)

    def lost(self, worker: int) -> None:
        """It will not come back."""
        self._out.pop(worker, None)

    def overdue(self, now: float) -> list[int]:
        """The workers whose leases have been out for too long; each is told once."""
        if self._slot_seconds is None:
            return []
        found = [
            worker
            for worker, (since, slots) in self._out.items()
            if now - since > self.bound(slots)
        ]
        for worker in found:
            del self._out[worker]
        return found

    def bound(self, slots: int) -> float:
        """How long a lease of so many slots may be out, in seconds."""
        return max(_LEAST_SECONDS, _TIMES_LONGER * slots * (self._slot_seconds or 0.0))
