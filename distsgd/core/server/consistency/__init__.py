"""Consistency policies: a file each, and a line each in the registry below."""

from __future__ import annotations

from collections.abc import Callable

from distsgd.core.server.consistency.asp import Asynchronous
from distsgd.core.server.consistency.backup import BackupWorkers
from distsgd.core.server.consistency.base import Policy
from distsgd.core.server.consistency.bsp import BulkSynchronous
from distsgd.core.server.consistency.local import LocalSteps
from distsgd.core.server.consistency.ssp import BoundedStaleness

__all__ = ["POLICIES", "Policy", "make_policy"]

POLICIES: dict[str, Callable[[int, int, int, int], Policy]] = {
    "bsp": lambda staleness, backup, local_steps, replicas: BulkSynchronous(),
    "ssp": lambda staleness, backup, local_steps, replicas: BoundedStaleness(staleness),
    "asp": lambda staleness, backup, local_steps, replicas: Asynchronous(),
    "backup": lambda staleness, backup, local_steps, replicas: BackupWorkers(backup),
    "local": lambda staleness, backup, local_steps, replicas: LocalSteps(local_steps, replicas),
}


def make_policy(
    name: str, *, staleness: int = 0, backup: int = 1, local_steps: int = 1, replicas: int = 1
) -> Policy:
    """The policy called ``name``; it takes those of the numbers that concern it."""
    return POLICIES[name](staleness, backup, local_steps, replicas)
