"""Backup workers: the first n - B slots make the update, the rest go into a later one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distsgd.core.server.consistency.base import Policy, Range, parameter

__all__ = ["BackupWorkers"]


@dataclass(frozen=True)
class BackupWorkers(Policy):
    """The update goes ahead with all but the B slowest slots of a minibatch of n.

    Late slots are recomputed in the next minibatch of the epoch, before its own; the last update
    of an epoch waits for all, so every example is used once an epoch.
    Source: Chen et al. 2016, "Revisiting distributed synchronous SGD"; the requeueing is ours.

    Attributes:
        backup: B.
    """

    backup: int = parameter(
        "Slots of a minibatch that an update does not wait for (B of backup).", default=1, least=1
    )
    name = "backup"
    requeues = True

    def most(self, name: str, slots: int) -> int:
        """One fewer than the slots."""
        return slots - 1

    def pieces(self, slots: int, workers: int) -> Sequence[Range]:
        """Each slot is a piece."""
        return [(slot, slot + 1) for slot in range(slots)]

    def enough(self, arrived: int, pieces: int, last: bool) -> bool:
        """All but B; at the end of an epoch, all."""
        return arrived == pieces if last else arrived >= max(1, pieces - self.backup)
