"""How many workers, processes, threads and bytes this machine or cluster has room for, and where.

Servers and workers are placed without a placement group, which is all or nothing: a run starts with
the workers for which there are CPUs, and takes more as nodes join.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from distsgd.errors import UsageError

__all__ = [
    "FollowedCapacity",
    "check_processes",
    "connected_ray",
    "cpu_quota",
    "free_memory",
    "free_threads",
    "process_memory",
    "server_placement",
    "worker_capacity",
    "worker_placement",
]


_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")

_SECONDS = 1.0

_PER_CORE = 32
"""Processes per core beyond which a training waits more than it computes."""

_ALWAYS = 8
"""Number of processes that is always allowed."""

_PROCESS_BYTES = 100 * 2**20
"""Least memory of a process with numpy and Ray."""


def connected_ray() -> Any:
    """The module, if this process is connected to a Ray, else None; never imports it."""
    ray = sys.modules.get("ray")
    # The function is missing while another thread is importing Ray.
    connected = getattr(ray, "is_initialized", lambda: False)()
    return ray if connected else None


def worker_capacity(servers: int) -> int:
    """Number of workers that fit beside the servers, at least 1.

    On a connected cluster: one per CPU, in use or not, that the servers leave. Otherwise: one per
    core of this machine, as servers need little of one.
    """
    if (ray := connected_ray()) is not None:
        return max(1, int(ray.cluster_resources().get("CPU", 0)) - servers)
    return len(os.sched_getaffinity(0))


def free_memory() -> int | None:
    """Bytes of free memory; None if unknown.

    The smaller of what the machine has without swapping, and what is left to the control groups of
    this process, such as a container.
    """
    found = _fields(_PROC / "meminfo").get("MemAvailable")
    known = [found * 1024] if found is not None else []
    return min(
        known + [left for left in map(_left_to, _groups()) if left is not None], default=None
    )


def process_memory() -> int | None:
    """Bytes that this process may still allocate by its limits (ulimit -v, -d); None if unlimited.

    Processes that it starts inherit the limits.
    """
    used = _fields(_PROC / "self" / "status")
    limits = ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))
    left = [
        max(0, soft - used.get(name, 0) * 1024)
        for soft, name in ((resource.getrlimit(limit)[0], name) for limit, name in limits)
        if soft != resource.RLIM_INFINITY
    ]
    return min(left, default=None)


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file with lines such as "MemFree: 100 kB" or "inactive_file 100"."""
    found = {}
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.replace(":", " ").split()
            if len(words) > 1 and words[1].isdecimal():
                found[words[0]] = int(words[1])
    except OSError:
        pass
    return found


def free_threads() -> int | None:
    """Number of threads that may still be started; None if unlimited.

    The smaller of what is left of the user's limit (ulimit -u), which does not bind root, and of
    the limits of the control groups of this process, such as a container.
    """
    known = [_numbers_left(group, "pids.max", "pids.current") for group in _groups("pids")]
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.geteuid() != 0 and most != resource.RLIM_INFINITY:
        known.append(max(0, most - _threads_of(os.getuid())))
    return min((left for left in known if left is not None), default=None)


def _threads_of(user: int) -> int:
    """Number of threads of a user."""
    found = 0
    for process in _PROC.glob("[0-9]*"):
        with suppress(OSError):
            if process.stat().st_uid == user:
                found += len(list((process / "task").iterdir()))
    return found


def _numbers_left(group: Path, most: str, used: str) -> int | None:
    """What a control group has left of something that it counts; None if it has no limit."""
    try:
        limit = int((group / most).read_text(encoding="ascii"))
        return max(0, limit - int((group / used).read_text(encoding="ascii")))
    except (OSError, ValueError):  # not there, or "max"
        return None


def _groups(controller: str = "memory") -> Iterator[Path]:
    """The control groups that limit something for this process, from its own to the outermost."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = ["0::/"]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, inner = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = _GROUPS / controller if controllers else _GROUPS  # version 1, or 2
        # Inside a container the path may be that of the host, which does not exist here.
        inside = top / inner.lstrip("/")
        yield from (path for path in (inside, *inside.parents) if path.is_relative_to(top))


def cpu_quota() -> float | None:
    """Processors whose time the control groups of this process get, such as 1.5; None for all."""
    return min(filter(None, map(_quota, _groups("cpu"))), default=None)


def _quota(group: Path) -> float | None:
    """The quota of one control group, of version 1 or 2; None if it has none."""
    with suppress(OSError, ValueError):  # not there, or "max"
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):
        spent = int((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = (group / "cpu.cfs_period_us").read_text(encoding="ascii")
        return spent / int(period) if spent > 0 else None
    return None


def _left_to(group: Path) -> int | None:
    """Bytes that a control group may still use; None if it has no limit."""
    for most, used, files in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = int((group / most).read_text(encoding="ascii"))
            taken = int((group / used).read_text(encoding="ascii"))
        except (OSError, ValueError):  # not there, or "max"
            continue
        # Cached files count as used, and are evicted when memory is needed.
        return max(0, limit - taken + _fields(group / "memory.stat").get(files, 0))
    return None


def most_processes() -> int:
    """Number of workers and servers that may run, here or on the connected cluster."""
    if (ray := connected_ray()) is not None:
        return max(_ALWAYS, _PER_CORE * int(ray.cluster_resources().get("CPU", 0)))
    most, memory = _PER_CORE * len(os.sched_getaffinity(0)), free_memory()
    if memory is not None:
        most = min(most, memory // _PROCESS_BYTES)
    return max(_ALWAYS, most)


def check_processes(count: int, others: int, what: str) -> None:
    """Check a number of processes before any of them is started.

    Args:
        count: number of workers, or of servers.
        others: number of other processes.
        what: how the user has given ``count``.

    Raises:
        UsageError: there are too many; tells how many fit.
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


class FollowedCapacity:
    """The number of workers that a run is to have: as many as fit, until the user gives a number.

    Args:
        requested: a number that the user has given since the last call, or None.
        servers: number of servers.
        follow: False to wait for the user's number alone.
    """

    def __init__(self, requested: Callable[[], int | None], servers: int, follow: bool) -> None:
        self._requested, self._servers, self._follow = requested, servers, follow
        self._next = 0.0

    def __call__(self) -> int | None:
        """The number, or None if it cannot have changed; called while connected to Ray."""
        if (requested := self._requested()) is not None:
            self._follow = False
            return requested
        now = monotonic()
        if not self._follow or now < self._next:
            return None
        self._next = now + _SECONDS
        return worker_capacity(self._servers)


def _several_nodes() -> bool:
    import ray

    return sum(bool(node["Alive"]) for node in ray.nodes()) > 1


def server_placement(placement: str) -> dict[str, Any]:
    """Options of the servers' actors.

    Args:
        placement: "near": on the driver's node if it has CPUs; "spread": on as many nodes as
            possible.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not _several_nodes():
        return {}
    if placement == "spread":
        return {"scheduling_strategy": "SPREAD"}
    here = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=True)}


def worker_placement() -> dict[str, Any]:
    """Options of a worker's actor: on as many nodes as possible."""
    return {"scheduling_strategy": "SPREAD"} if _several_nodes() else {}
