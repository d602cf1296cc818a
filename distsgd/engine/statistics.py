"""What a consistency policy cost: staleness, drops, requeues, waiting."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from distsgd.core.messages import Applied, Decision, Dropped

__all__ = ["Statistics"]


@dataclass
class Statistics:
    """Counts over a run.

    Attributes:
        updates: updates applied.
        staleness: age of a gradient in updates -> contributions of that age.
        dropped: pushes that were not used.
        requeued: pieces that were put off to a later update.
        waiting_seconds: worker -> seconds from asking for work to getting it.
        answering_seconds: worker -> seconds from getting work to its answer's arrival: computing,
            and the way there and back.
        busy_seconds: time the server spent on pushes and pulls.
        bytes_pushed: bytes of gradients that were sent to the server.
        let_pass: updates sampled for a recomputation that found no room to wait for it.
    """

    updates: int = 0
    staleness: Counter[int] = field(default_factory=Counter)
    dropped: int = 0
    requeued: int = 0
    waiting_seconds: dict[int, float] = field(default_factory=dict)
    answering_seconds: dict[int, float] = field(default_factory=dict)
    bytes_pushed: int = 0
    busy_seconds: float = 0.0
    let_pass: int = 0

    def count(self, decision: Decision) -> None:
        """Take note of a decision of the server."""
        if isinstance(decision, Applied):
            self.updates += 1
            self.staleness.update(decision.staleness)
            self.requeued += len(decision.requeued)
        elif isinstance(decision, Dropped):
            self.dropped += 1

    def waited(self, worker: int, seconds: float) -> None:
        """A worker has waited for work."""
        self.waiting_seconds[worker] = self.waiting_seconds.get(worker, 0.0) + seconds
