"""What each worker has done since the processes started, reported now and then.

Reports cost next to nothing: images are counted from decisions that are recorded anyway, seconds
from times that are taken anyway, and a report is made a few times a second, in a long training
every few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from distsgd.core.messages import Applied, Decision, Lease, Stretch
from distsgd.core.plan import Plan

__all__ = ["COMPUTING", "GONE", "IN_TEAM", "STARTING", "WAITING", "FleetReport", "ImageCounts",
           "ReportTimes", "WorkerDone", "done"]  # fmt: skip

COMPUTING, WAITING, IN_TEAM = "computing", "waiting", "in a team"
STARTING, GONE = "starting", "gone"
"""States of a worker. What one does within a team, the team alone knows. One that is gone has died,
or has been removed."""

_LEAST_SECONDS, _MOST_SECONDS, _SHARE = 0.1, 5.0, 1 / 200


@dataclass(frozen=True)
class WorkerDone:
    """What a worker has done since the processes started.

    Attributes:
        images: examples of its gradients that were used.
        computing: seconds from getting work to its answer: computing, and the way there and back.
        pushing: seconds until its answers were added.
        waiting: seconds after that, until it got work again.
        state: what it does now.
    """

    images: int
    computing: float
    pushing: float
    waiting: float
    state: str


@dataclass(frozen=True)
class FleetReport:
    """What the fleet has done since the processes started.

    Attributes:
        step: updates applied to W.
        seconds: spent on steps.
        workers: by number.
        ages: age of a gradient in updates -> contributions of that age.
        pushed: bytes of gradients.
    """

    step: int
    seconds: float
    workers: dict[int, WorkerDone]
    ages: dict[int, int]
    pushed: int


class ReportTimes:
    """When reports are due: often at first, then each 200th of the time so far.

    Args:
        seconds: seconds of steps so far.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds, self._next = seconds, _LEAST_SECONDS

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return self._seconds() >= self._next

    def made(self) -> None:
        """A report has been made."""
        now = self._seconds()
        self._next = now + min(_MOST_SECONDS, max(_LEAST_SECONDS, now * _SHARE))


class ImageCounts:
    """Images of each worker's gradients that were used.

    Args:
        plan: whose slots they are.

    Attributes:
        images: worker -> how many.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._known: dict[tuple[int, ...], int] = {}  # of leases of full minibatches
        self.images: dict[int, int] = {}

    def count(self, decision: Decision) -> None:
        """Take note of an update, or of those of a team."""
        if isinstance(decision, Applied):
            images = self.images
            for worker, lease in decision.contributions:
                images[worker] = images.get(worker, 0) + self._of(lease)
        elif isinstance(decision, Stretch):
            self._count_all(decision)

    def _of(self, lease: Lease) -> int:
        """Images of a lease."""
        plan = self._plan
        _, first, last, _, steps, replicas, _ = lease
        per_epoch = plan.steps_per_epoch
        key = (first, last, steps, replicas)
        full = lease.step % per_epoch + steps < per_epoch  # without the last, which may be short
        if full and (found := self._known.get(key)) is not None:
            return found
        found = 0
        for step, low, high in lease.slots(plan):
            if high > low:
                found += plan.slot(step, high - 1)[1] - plan.slot(step, low)[0]
        if full:
            self._known[key] = found
        return found

    def _count_all(self, stretch: Stretch) -> None:
        answers = stretch.answers
        if len(answers) and answers[:, :, 6].any():  # replicas
            rows = answers.reshape(-1, answers.shape[2]).tolist()
            for worker, *lease in rows:
                if worker >= 0:
                    self.images[worker] = self.images.get(worker, 0) + self._of(Lease(*lease))
            return
        size = self._plan.slot_size
        ends = np.minimum(answers[:, :, 3] * size, stretch.examples[:, None])
        counts = np.maximum(ends - answers[:, :, 2] * size, 0)
        for worker in np.unique(answers[:, :, 0]).tolist():
            if worker >= 0:
                own = int(counts[answers[:, :, 0] == worker].sum())
                self.images[worker] = self.images.get(worker, 0) + own


def done(
    counts: ImageCounts,
    computing: Mapping[int, float],
    pushing: Mapping[int, float],
    waiting: Mapping[int, float],
    states: Mapping[int, str],
) -> dict[int, WorkerDone]:
    """What each worker has done, from its parts by worker."""
    return {
        worker: WorkerDone(
            counts.images.get(worker, 0),
            computing.get(worker, 0.0),
            pushing.get(worker, 0.0),
            max(0.0, waiting.get(worker, 0.0) - pushing.get(worker, 0.0)),
            state,
        )
        for worker, state in sorted(states.items())
    }
