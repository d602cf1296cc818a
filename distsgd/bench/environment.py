"""What figures were measured on: hardware and versions, for the report."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from distsgd.data.system import pause
from distsgd.engine.blas import blas_kernel
from distsgd.version import __version__

__all__ = ["busy_cores", "environment"]

_PACKAGES = ("numpy", "ray", "pyarrow", "torch", "scikit-learn")


def environment() -> dict[str, str]:
    """Hardware and versions, by name, in the order of the report."""
    found = {
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{_memory() / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "distsgd": __version__,
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        found[package] = _version(package)
        if package == "numpy":
            found["blas"] = blas_kernel()
    return found


def busy_cores(seconds: float = 0.25) -> float:
    """How many cores were busy, with anything, while this process slept."""
    before = _jiffies()
    pause(seconds)
    busy, total = (b - a for a, b in zip(before, _jiffies(), strict=True))
    return (os.cpu_count() or 1) * busy / total if total else 0.0


def _jiffies() -> tuple[int, int]:
    """Time that all cores were busy, or lent to somebody else by the host, and all their time."""
    with Path("/proc/stat").open(encoding="utf-8") as file:
        spent = [int(word) for word in file.readline().split()[1:9]]
    idle, waiting = spent[3:5]
    return sum(spent) - idle - waiting, sum(spent)


def _version(package: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return "not installed"


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
