"""What a check of the machine has found: that something is well, or what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

__all__ = ["OK", "PROBLEM", "WARNING", "Check", "Finding", "ok", "problem", "warning"]

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        state: "ok"; "warning": trainings work, but slower, later or less safely; or "problem":
            some of them fail.
        topic: what it is about, such as "disk".
        message: what is well, or what is wrong.
        cure: what to do next; empty if it is well.
    """

    state: str
    topic: str
    message: str
    cure: str = ""


ok = partial(Finding, OK)
warning = partial(Finding, WARNING)
problem = partial(Finding, PROBLEM)

Check = Callable[[], Iterator[Finding]]
