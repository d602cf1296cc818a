"""The runs that a run was forked from: its history is theirs up to the fork, and then its own."""

from __future__ import annotations

from dataclasses import dataclass

from distsgd.runs.opened_run import OpenedRun

__all__ = ["Segment", "lineage"]


@dataclass(frozen=True)
class Segment:
    """A part of a history, which one run folder has recorded.

    Attributes:
        run: the run.
        last: the update at which the next part begins; None for the last part.
    """

    run: OpenedRun
    last: int | None = None


def lineage(run: OpenedRun) -> list[Segment]:
    """The parts of the history of a run, oldest first.

    Raises:
        RunError: a run that it was forked from is gone, or is no longer what it was.
    """
    return [Segment(run)]
