from __future__ import annotations

import pytest

from distsgd.core.messages import Applied, Lease
from distsgd.core.plan import Plan
from distsgd.engine.fleet_report import ImageCounts, ReportTimes

PLAN = Plan(seed=0, sampling="shuffle", examples=45, batch_size=10, slot_size=4, epochs=2)


def applied(*contributions: tuple[int, Lease]) -> Applied:
    return Applied(0, 0, 1, 1.0, 1, 10, 0.1, contributions, (), False)


def test_images_of_slots() -> None:
    """Minibatches of slots of 4, 4 and 2 examples; the last of an epoch of 4 and 1."""
    counts = ImageCounts(PLAN)
    for step in range(PLAN.total_steps):
        middle = 1 if PLAN.slots(step) == 2 else 2
        counts.count(applied((0, Lease(step, 0, middle, step)),
                             (7, Lease(step, middle, PLAN.slots(step), step))))  # fmt: skip
    assert counts.images == {0: 2 * (4 * 8 + 4), 7: 2 * (4 * 2 + 1)}


def test_images_of_local_steps() -> None:
    """Of 3 steps for each of 2 replicas."""
    counts = ImageCounts(PLAN)
    for first in (0, 2):
        steps = 2 if first == 0 else 3
        for replica in (0, 1):
            counts.count(applied((replica, Lease(first, replica, replica + 1, 0, steps, 2))))
    assert sum(counts.images.values()) == 45


def test_reports_become_rarer() -> None:
    now = [0.0]
    times = ReportTimes(lambda: now[0])
    made = []
    while now[0] < 3600:
        if times.due:
            times.made()
            made.append(now[0])
        now[0] += 0.05
    assert made[0] == pytest.approx(0.1) and made[1] - made[0] < 0.2
    assert made[-1] - made[-2] == pytest.approx(5, abs=0.1)
    assert len(made) < 2000
