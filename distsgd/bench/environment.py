"""Hardware and versions for the report; measurements by round, their medians and ratios."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from distsgd.data.system import pause
from distsgd.engine.blas import blas_kernel
from distsgd.errors import RuntimeFailure
from distsgd.version import __version__

__all__ = ["Measurement", "busy_cores", "check_kernel", "cpu_flags", "environment", "ratio"]


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
    return _of_cpu("model name") or platform.processor() or "unknown"


def cpu_flags() -> frozenset[str]:
    """What the processor can do, such as "avx2", by the names of /proc/cpuinfo."""
    return frozenset(_of_cpu("flags").split())


def _of_cpu(wanted: str) -> str:
    """A line of /proc/cpuinfo on the first core; empty if there is none."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == wanted:
                return value.strip()
    return ""


def check_kernel(wanted: str) -> None:
    """Check that the BLAS of this process has the kernels that it was asked for.

    Args:
        wanted: such as "Haswell"; empty for any.

    Raises:
        RuntimeFailure: it has others.
    """
    if wanted and f"({wanted})" not in (found := blas_kernel()):
        raise RuntimeFailure(f"numpy computes by {found}, not by {wanted} kernels")


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(kw_only=True)
class Measurement:
    """All rounds of one contender.

    Attributes:
        name: of the contender.
        values: round -> what was found, in the contender's unit.
        details: what else the last round had to say.
        skipped: why it was not measured, or not in every round; empty if it was.
    """

    name: str
    values: dict[int, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""

    @property
    def median(self) -> float | None:
        """Median over the rounds; None if there is none."""
        return median(self.values.values()) if self.values else None

    @property
    def least(self) -> float | None:
        """The least of the rounds."""
        return min(self.values.values(), default=None)

    @property
    def most(self) -> float | None:
        """The most of the rounds."""
        return max(self.values.values(), default=None)


def ratio(measured: Mapping[str, Measurement], name: str, baseline: str) -> float | None:
    """How many times the baseline: the median of the ratios within each round.

    Machines drift; what is measured in one round is measured close together. None if no round
    has both.
    """
    if name not in measured or baseline not in measured:
        return None
    ours, theirs = measured[name].values, measured[baseline].values
    ratios = [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys())]
    return median(ratios) if ratios else None
