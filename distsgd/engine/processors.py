"""Processors: where the members of a team run, and how one moves away from another.

The scheduler shares processors between sessions and control groups, not between processes. Beside
other work it may therefore put two members of a team on one processor and leave half of another to
the rest, though they could run at the same time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["move_away", "processor_of"]

_PROCESSOR = 36
"""Of the fields of /proc/PID/stat behind the name, see proc(5): number 39 there."""


def processor_of(pid: int) -> int | None:
    """The processor that a process of this machine runs on, or ran on last; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[_PROCESSOR])


def move_away(pids: Iterable[int], others: Iterable[int] = ()) -> bool | None:
    """Move this thread to a processor that none of some processes runs on.

    It may run wherever it might before; only the scheduler's choice is made anew.

    Args:
        pids: if it shares its processor with one of these.
        others: further processes, whose processors are not free.

    Returns:
        whether it has been moved; None if it shares its processor, and no other is free.
    """
    taken = {processor_of(pid) for pid in pids}
    if processor_of(os.getpid()) not in taken:
        return False
    allowed = os.sched_getaffinity(0)
    free = allowed - taken - {processor_of(pid) for pid in others}
    if not free:
        return None
    os.sched_setaffinity(0, free)
    os.sched_setaffinity(0, allowed)
    return True
