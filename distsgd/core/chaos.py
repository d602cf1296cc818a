"""Faults on purpose: which befall a training when, as a pure function of a seed.

Nothing is killed or dropped here. The driver asks for the strikes that an update brings about; the
worker's end of a channel asks what befalls a push.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

__all__ = ["PROCESS_FAULTS", "PUSH_FAULTS", "Chaos", "Fault", "Strike"]

PROCESS_FAULTS = ("kill-worker", "stop-worker", "kill-server")
"""Befall a process, at an update."""

PUSH_FAULTS = ("drop-push", "dup-push", "delay")
"""Befall a push on its way."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault, and when.

    Attributes:
        name: one of `PROCESS_FAULTS` or `PUSH_FAULTS`.
        every: updates between one and the next, from the start; 0 for ``at``.
        at: the one update after which it comes.
        share: of a fault of pushes, the chance that it befalls one.
        seconds: how long it lasts, where it does.
    """

    name: str
    every: int = 0
    at: int = 0
    share: float = 0.0
    seconds: float = 0.0

    def due(self, version: int) -> bool:
        """Whether it comes after this update, counted from 1."""
        return version % self.every == 0 if self.every else version == self.at


@dataclass(frozen=True)
class Strike:
    """A fault of a process, now.

    Attributes:
        fault: which.
        version: after which update it was due.
        choice: which of the processes, as a share of their number; from 0 to below 1.
    """

    fault: Fault
    version: int
    choice: float


@dataclass(frozen=True)
class Chaos:
    """All faults of a training.

    Attributes:
        faults: in the order in which they were given.
        seed: of every choice.
        text: how the user wrote them.
    """

    faults: tuple[Fault, ...]
    seed: int = 0
    text: str = ""

    def strikes(self, before: int, now: int) -> list[Strike]:
        """What processes are to suffer after the updates from above ``before`` up to ``now``."""
        return [
            Strike(fault, version, self._uniform(number, version))
            for version in range(before + 1, now + 1)
            for number, fault in enumerate(self.faults)
            if fault.name in PROCESS_FAULTS and fault.due(version)
        ]

    def of_push(self, worker: int, number: int) -> dict[str, Fault]:
        """What befalls a worker's push.

        Args:
            worker: whose.
            number: how many it has sent before in the run. Not the lease: one that was dropped is
                computed again, and would be dropped each time.

        Returns:
            the faults by name.
        """
        return {
            fault.name: fault
            for place, fault in enumerate(self.faults)
            if fault.name in PUSH_FAULTS and self._uniform(place, worker, number) < fault.share
        }

    def _uniform(self, *key: int) -> float:
        """From 0 to below 1: the same for the same key, independent for all others."""
        text = "/".join(map(str, ("distsgd chaos", self.seed, *key)))
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return float((int.from_bytes(digest, "big") >> 11) / 2**53)
