"""When to make a snapshot within an epoch, and the older versions of W that belong to it.

Where workers do not wait for each other, some answer is always on its way that has read an older
W, and who goes on from a snapshot needs that W as well. So when a snapshot is due, W is kept each
time that it is given out, until all that is on its way has read a W that is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from distsgd.core.arrays import Floats
from distsgd.core.server.parameter_server import ParameterServer
from distsgd.core.server.range_server import SplitServer
from distsgd.engine.job import Snapshot, snapshot

__all__ = ["TimedSnapshots"]


class TimedSnapshots:
    """Says when, and collects.

    Args:
        server: what there are snapshots of.
        every: seconds of work between two of them; 0 for none.
        seconds: of work so far.

    Attributes:
        collecting: whether W is to be kept when it is given out.
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
        """The snapshot, if all is there that belongs to it; else collecting begins, or goes on."""
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
