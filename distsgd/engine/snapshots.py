"""Snapshots on their way to the driver: their residuals, and the versions of W they need.

Residuals of error feedback are kept by the workers. A snapshot of a version of W needs, of each
worker, the residual after its last answer in that W: the worker is asked for it when it next calls,
and keeps it until then. If one is missing, the snapshot has none.

Where workers do not wait for each other, some answer that has read an older W is always in flight,
and a resume needs that W too. So when a snapshot within an epoch is due, every W that is sent is
kept, until all answers in flight have read a W that is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from distsgd.core.arrays import Floats
from distsgd.core.messages import ResidualReport, ResidualRequest
from distsgd.core.optim import Residual
from distsgd.core.server import ParameterServer, SplitServer
from distsgd.engine.events import Ended, EpochEnded, Event, Notice, Saved
from distsgd.engine.job import Snapshot, snapshot

__all__ = ["HeldEvents", "TimedSnapshots"]


_PATIENCE = 1.0
"""Seconds that a snapshot waits for a worker's residual."""

_MOST_EPOCHS, _MOST_BYTES = 64, 256 * 2**20
"""Most epochs that wait to be measured, and most bytes of their copies of W; at least 2 epochs."""


@dataclass
class _Held:
    event: Event
    wanted: dict[int, int]
    until: float
    found: dict[int, Residual] = field(default_factory=dict)
    lost: bool = False

    def whole(self) -> Event:
        """The event with its residuals, if all were reported."""
        event = self.event
        if not isinstance(event, EpochEnded | Saved | Ended):
            return event
        known = event.snapshot.residuals
        missing = known is None or self.wanted or self.lost
        residuals = None if missing else {**(known or {}), **self.found}
        return replace(event, snapshot=replace(event.snapshot, residuals=residuals))


class HeldEvents:
    """A queue of events, in which snapshots wait for their residuals.

    A driver that measures epochs more slowly than they end gets one at a time, so that it can stop
    between two of them; the queue is thinned out before its snapshots fill the memory.

    Times are seconds of one clock, given by the caller.
    """

    def __init__(self) -> None:
        self._events: deque[_Held] = deque()
        self._wanting = False
        self._epochs, self._thinned = 0, False

    def add(self, event: Event, wanted: dict[int, int], now: float) -> None:
        """Append an event.

        Args:
            event: what happened; a snapshot has the residuals that are known already.
            wanted: worker -> serial, for a snapshot: whose residuals, after how many answers.
            now: the time.
        """
        self._events.append(_Held(event, wanted, now + _PATIENCE))
        self._wanting |= bool(wanted)
        if isinstance(event, EpochEnded):
            self._epochs += 1
            if self._epochs > _most_epochs(event):
                self._thin_out(now)

    def _thin_out(self, now: float) -> None:
        """Drop every second waiting epoch, but not the newest."""
        epochs = [held for held in self._events if isinstance(held.event, EpochEnded)]
        left_out = set(map(id, epochs[-2::-2]))
        self._events = deque(held for held in self._events if id(held) not in left_out)
        self._epochs -= len(left_out)
        if not self._thinned:
            self._thinned = True
            text = "epochs end faster than they can be measured: some are left out of the curve"
            self._events.append(_Held(Notice(text), {}, now))

    def ready(self, now: float) -> bool:
        """Whether `take` would return anything."""
        return bool(self._events) and self._complete(self._events[0], now)

    def urgent(self, now: float) -> bool:
        """Whether a snapshot is ready."""
        return any(
            isinstance(held.event, EpochEnded | Saved | Ended) and self._complete(held, now)
            for held in self._events
        )

    def take(self, now: float) -> list[Event]:
        """The events that are complete, in order, up to the next end of an epoch."""
        found: list[Event] = []
        while self.ready(now) and not (found and isinstance(found[-1], EpochEnded)):
            found.append(self._events.popleft().whole())
            self._epochs -= isinstance(found[-1], EpochEnded)
        self._wanting = any(held.wanted for held in self._events)
        return found

    def request(self, worker: int) -> ResidualRequest | None:
        """The request for a worker's residual, if one is needed."""
        if not self._wanting:
            return None
        for held in self._events:
            if worker in held.wanted:
                return ResidualRequest(held.wanted[worker])
        return None

    def reported(self, worker: int, report: ResidualReport) -> None:
        """A worker has answered a request; an answer that nothing waits for is ignored."""
        for held in self._events:
            if held.wanted.get(worker) == report.serial:
                held.found[worker] = Residual(held.wanted.pop(worker), report.residual.copy())
                return

    def lost(self, worker: int) -> None:
        """A worker has gone, and its residual with it."""
        for held in self._events:
            held.lost |= held.wanted.pop(worker, None) is not None

    def _complete(self, held: _Held, now: float) -> bool:
        return not held.wanted or now >= held.until


def _most_epochs(event: EpochEnded) -> int:
    """Number of epochs like this one that may wait."""
    snapshot = event.snapshot
    each = sum(array.nbytes for array in (snapshot.weights, *snapshot.state.values()))
    return max(2, min(_MOST_EPOCHS, _MOST_BYTES // max(1, each)))


class TimedSnapshots:
    """Decides when to make a snapshot within an epoch, and collects the versions it needs.

    Args:
        server: the server.
        every: seconds of work between two snapshots; 0 for none.
        seconds: returns the seconds of work so far.

    Attributes:
        collecting: whether W has to be kept when it is sent.
    """

    def __init__(
        self, server: ParameterServer | SplitServer, every: float, seconds: Callable[[], float]
    ) -> None:
        self._server, self._every, self._seconds = server, every, seconds
        self._next = every if every else float("inf")
        self._kept: dict[int, Floats] = {}
        self.collecting = False

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return self._seconds() >= self._next

    @property
    def floor(self) -> int:
        """The oldest version that is kept, or the current one."""
        return min(self._kept, default=self._server.version)

    def keep(self) -> bool:
        """Keep W as it is now; False if it is kept already."""
        version = self._server.version
        if version in self._kept:
            return False
        self._kept[version] = self._server.weights.copy()
        return True

    def take(self) -> Snapshot | None:
        """The snapshot, if it is complete; else start or continue collecting."""
        reads, now = self._server.reads(), self._server.version
        for version in self._kept.keys() - reads:
            del self._kept[version]
        older = sorted(reads - {now})
        self.collecting = not self._kept.keys() >= set(older)
        if self.collecting:
            return None
        kept = {version: self._kept[version] for version in older}
        found = replace(snapshot(self._server), reads=kept, usable=True, floor=self.floor)
        self._kept.clear()
        self._next = self._seconds() + self._every
        return found
