"""Where a process is, so that one that hangs can be ended at once.

Ray asks a process to end, and uses force after 5 s: one that is stopped holds its CPU until then.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distsgd.data.system import kill_if

__all__ = ["Whereabouts", "end_process", "whereabouts"]


@dataclass(frozen=True)
class Whereabouts:
    """A process.

    Attributes:
        machine: boot and namespace in which its number means something.
        pid: its number.
        started: when it was started, in ticks since the boot; numbers are used again.
    """

    machine: str
    pid: int
    started: str


def whereabouts(_: object = None) -> Whereabouts:
    """Those of this process."""
    return Whereabouts(_machine(), os.getpid(), _started(os.getpid()))


def end_process(place: Whereabouts) -> bool:
    """SIGKILL a process of this machine; returns whether it was here, and still the same."""
    with suppress(OSError):
        if place.machine == _machine():
            return kill_if(place.pid, lambda: place.started == _started(place.pid))
    return False


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> str:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return stat.rpartition(")")[2].split()[19]
