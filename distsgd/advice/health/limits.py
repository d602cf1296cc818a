"""Limits of this process and its containers: files, threads, memory, processors."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

from distsgd.advice.health.finding import Finding, ok, problem, warning
from distsgd.on_ray.capacity import cpu_quota, free_memory, free_threads, process_memory

__all__ = ["memory", "processors", "ulimits"]

_FILES, _FEW_FILES = 1024, 4096
"""Open files that a small training needs, and that a large one does."""

_THREADS, _FEW_THREADS = 200, 1000
_FILE_SIZE = 2**30
_ADDRESSES, _FEW_ADDRESSES = 8 * 2**30, 16 * 2**30
"""Address space that a worker with Ray and Arrow needs: they reserve far more than they use."""

_MEMORY, _FEW_MEMORY = 400 * 2**20, 2 * 2**30


def ulimits() -> Iterator[Finding]:
    """Open files, threads, sizes of files, time, address space and locked memory."""
    topic, bad = "limits", False
    for finding in (*_files(topic), *_threads(topic), *_sizes(topic)):
        bad = True
        yield finding
    if not bad:
        free, locked = free_threads(), resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        threads = "threads without limit" if free is None else f"{free:,} more threads"
        yield ok(
            topic,
            f"{_shown(resource.getrlimit(resource.RLIMIT_NOFILE)[1])} open files, {threads}, "
            f"{_bytes(locked)} of locked memory (none is needed)",
        )


def _files(topic: str) -> Iterator[Finding]:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < _FEW_FILES:
        kind = problem if most < _FILES else warning
        yield kind(
            topic,
            f"a process may have {most:,} files open; workers, shards and Ray take up to "
            f"{_FEW_FILES:,}",
            f"Raise the hard limit: ulimit -Hn {_FEW_FILES}, or nofile in "
            "/etc/security/limits.conf, LimitNOFILE= of a unit, --ulimit of a container",
        )


def _threads(topic: str) -> Iterator[Finding]:
    free = free_threads()
    if free is not None and free < _FEW_THREADS:
        kind = problem if free < _THREADS else warning
        yield kind(
            topic,
            f"only {free:,} more threads and processes may be started; a training with two "
            f"workers has about 300",
            "Raise ulimit -u, pids.max of the container (--pids-limit) or TasksMax= of the unit, "
            "or train with --workers 0",
        )


def _sizes(topic: str) -> Iterator[Finding]:
    size = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if size != resource.RLIM_INFINITY and size < _FILE_SIZE:
        yield problem(
            topic, f"a file may be no larger than {_bytes(size)}", "Raise it: ulimit -f unlimited"
        )
    seconds = resource.getrlimit(resource.RLIMIT_CPU)[0]
    if seconds != resource.RLIM_INFINITY:
        yield warning(
            topic,
            f"a process is ended after {seconds:,} s of a processor's time",
            "Raise it: ulimit -t unlimited; `distsgd resume` continues what was ended",
        )
    room = process_memory()
    if room is not None and room < _FEW_ADDRESSES:
        kind = problem if room < _ADDRESSES else warning
        yield kind(
            topic,
            f"a process may allocate {_bytes(room)} of addresses, and Ray and Arrow reserve more "
            "than they use",
            "Raise it: ulimit -v unlimited; ulimit -d unlimited; or train with --workers 0",
        )


def memory() -> Iterator[Finding]:
    """Memory that is free on the machine and in its containers."""
    free = free_memory()
    if free is None:
        yield warning("memory", "how much is free is not known", "Look whether /proc is mounted")
    elif free < _FEW_MEMORY:
        kind = problem if free < _MEMORY else warning
        yield kind(
            "memory",
            f"{_bytes(free)} are free; a training takes about 0.3 GiB, and 0.2 GiB a worker",
            "End other programs, raise the limit of the container (--memory, MemoryMax=), or "
            "train with --workers 0",
        )
    else:
        yield ok("memory", f"{_bytes(free)} are free")


def processors() -> Iterator[Finding]:
    """Processors that this process may use, and the time of them that its container gives."""
    cores, quota = len(os.sched_getaffinity(0)), cpu_quota()
    if quota is not None and quota < cores:
        whole = max(1, int(quota))
        yield warning(
            "processors",
            f"{cores} can be seen, but the container gets the time of {quota:g} of them: "
            "--workers auto starts too many, and all are stopped again and again",
            f"Train with --workers {whole}, or raise the quota (--cpus, CPUQuota=)",
        )
        return
    load = os.getloadavg()[0]
    busy = f"; the load of the last minute is {load:.1f}" if load > cores else ""
    yield ok("processors", f"{cores} to compute on{busy}")


def _bytes(number: int) -> str:
    if number == resource.RLIM_INFINITY:
        return "any amount"
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number >> 20} MiB"


def _shown(number: int) -> str:
    return "any number of" if number == resource.RLIM_INFINITY else f"{number:,}"
