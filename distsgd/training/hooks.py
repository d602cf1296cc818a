"""How a feature takes part in a training session: the session calls it, and knows no more of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distsgd.engine.events import Ended, Event
from distsgd.engine.job import Job, Snapshot
from distsgd.runs.opened_run import OpenedRun

if TYPE_CHECKING:
    from distsgd.on_ray.chaos_kills import ChaosKills

__all__ = ["Context", "Hook"]


@dataclass(frozen=True)
class Context:
    """What a session gives to its hooks.

    Attributes:
        run: the run.
        version: updates applied before the session.
        save: writes a checkpoint of a snapshot, if the disk has room.
    """

    run: OpenedRun
    version: int
    save: Callable[[Snapshot], None]


class Hook:
    """Takes part in a session. Every method here does nothing; a feature overrides what it needs.

    A session calls `open`, then `event` and `restarted` any number of times, and in the end
    `close`, `ended` and `result`. After an error it calls `close` alone.
    """

    def prepare(self, job: Job, context: Context) -> Job:
        """The session starts: open files and threads; returns the job as this feature needs it."""
        return job

    def event(self, event: Event) -> None:
        """The runtime has reported an event. An error raised here ends the training."""

    def restarted(self) -> None:
        """The processes were restarted: updates after the last one in the journal may recur."""

    def process_faults(self) -> ChaosKills | None:
        """What kills and stops processes on purpose, if anything does."""
        return None

    def ended(self, ended: Ended) -> None:
        """The training has ended, and the run folder is complete but for its report."""

    def close(self) -> None:
        """Close files and threads; all workers have exited."""

    def result(self, ended: Ended) -> dict[str, Any]:
        """Fields of the `TrainResult` that this feature fills in."""
        return {}
