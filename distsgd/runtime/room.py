"""How many workers, processes and bytes there is room for, also while nodes join and leave."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from distsgd.errors import UsageError

__all__ = ["FollowedRoom", "check_processes", "free_memory", "most_processes", "room_for_workers"]

_SECONDS = 1.0

_PER_CORE = 32
"""Processes on one core beyond which a training stands still more than it computes."""

_ALWAYS = 8
"""Processes that are never refused."""

_PROCESS_BYTES = 100 * 2**20
"""Memory that a process with numpy and Ray takes, at least."""


def room_for_workers(servers: int) -> int:
    """Workers that fit beside so many servers, at least 1.

    On the cluster that this process is connected to, those for which there are CPUs, whoever uses
    them now; else one for each core of this machine, as the servers have little to do.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return max(1, int(ray.cluster_resources().get("CPU", 0)) - servers)
    return len(os.sched_getaffinity(0))


def free_memory() -> int | None:
    """Bytes of memory that are free for processes to come; None if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        (found,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, ValueError, IndexError):
        return None
    try:  # that of a container
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        return min(found, max(0, limit - used))
    except (OSError, ValueError):
        return found


def most_processes() -> int:
    """Workers and servers that may be started, here or on the cluster one is connected to."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return max(_ALWAYS, _PER_CORE * int(ray.cluster_resources().get("CPU", 0)))
    most, memory = _PER_CORE * len(os.sched_getaffinity(0)), free_memory()
    if memory is not None:
        most = min(most, memory // _PROCESS_BYTES)
    return max(_ALWAYS, most)


def check_processes(count: int, others: int, what: str) -> None:
    """See that there is room for so many processes, before any of them is started.

    Args:
        count: the workers, or the servers.
        others: processes beside them.
        what: how the user has written ``count``, such as --workers 500.

    Raises:
        UsageError: there is none; says what would do.
    """
    most = most_processes()
    if count + others > most:
        cores = len(os.sched_getaffinity(0))
        left = most - others
        raise UsageError(
            f"{what} is more than there is room for: {most:,} processes at most, workers and "
            f"servers together, of which {cores} compute at a time on this machine",
            f"Give a number from 1 to {left:,}" if left > 0 else "Give fewer of both",
        )


class FollowedRoom:
    """How many workers a run is to have: what the user says, until then what there is room for.

    Args:
        said: what the user wants, if there is new word.
        servers: of the run.
        follow: False for what the user says alone.
    """

    def __init__(self, said: Callable[[], int | None], servers: int, follow: bool) -> None:
        self._said, self._servers, self._follow = said, servers, follow
        self._next = 0.0

    def __call__(self) -> int | None:
        """How many, if that may have changed; to be asked within a session of Ray."""
        if (said := self._said()) is not None:
            self._follow = False
            return said
        now = monotonic()
        if not self._follow or now < self._next:
            return None
        self._next = now + _SECONDS
        return room_for_workers(self._servers)
