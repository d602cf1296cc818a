"""Updates of a team give rise to the same events as one by one."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distsgd.core.messages import Applied, Stretch
from distsgd.core.optim import Schedule
from distsgd.core.plan import Plan
from distsgd.core.server.consistency import make_policy
from distsgd.core.server.standing import Standing, TeamRecords
from distsgd.engine.events import Ended, EpochEnded, Event, Progress, Recorder, UpdatedByTeam

PLAN = Plan(seed=0, sampling="shuffle", examples=45, batch_size=10, slot_size=5, epochs=3)


def stretches(sizes: list[int]) -> list[Stretch]:
    """What a team makes of the plan in parts of these sizes, as far as an epoch goes."""
    team = Standing(PLAN, make_policy("bsp"), (0, 1), (0, 0), 0, 0)
    schedule = Schedule(name="cosine", learning_rate=0.1, total=PLAN.total_steps)
    rng, found = np.random.default_rng(0), []
    while team.grant(PLAN.steps_per_epoch) is not None:
        for size in sizes:
            count = min(size, team.left)
            if count:
                records = TeamRecords(rng.random((count, 2)), rng.integers(0, 10, count))
                found.append(team.made(records, schedule))
    return found


def recorder_of(server: Any, clock: list[float], log_every: int) -> Recorder:
    job: Any = SimpleNamespace(log_every=log_every, plan=PLAN)
    return Recorder(job, server, lambda: clock[0])


def server_at(version: int) -> Any:
    return SimpleNamespace(
        version=version, finished=version == PLAN.total_steps, sampler=None, weights=np.zeros(1),
        optimizer=SimpleNamespace(state={}), reads=set,
    )  # fmt: skip


def record(recorder: Recorder, server: Any, decision: Applied | Stretch) -> list[Event]:
    version = decision.end if isinstance(decision, Stretch) else decision.version
    vars(server).update(vars(server_at(version)))
    return recorder.record(decision)


def numbers(events: list[Event]) -> list[Any]:
    """The events that tell of the curve, without times."""
    found: list[Any] = []
    for event in events:
        if isinstance(event, Progress):
            found.append(replace(event, seconds=0.0))
        elif isinstance(event, EpochEnded):
            found.append((event.epoch, event.loss, event.accuracy, event.snapshot.version))
        elif isinstance(event, Ended):
            found.append((event.finished, event.examples_seen, event.statistics.updates))
    return found


@pytest.mark.parametrize("log_every", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("sizes", [[1] * 5, [5], [2, 3], [4, 1]], ids=str)
def test_events_do_not_depend_on_who_makes_the_updates(sizes: list[int], log_every: int) -> None:
    one, other = server_at(0), server_at(0)
    together = recorder_of(one, [1.0], log_every)
    apart = recorder_of(other, [1.0], log_every)
    expected: list[Event] = []
    found: list[Event] = []
    for stretch in stretches(sizes):
        found += record(together, one, stretch)
        for update in stretch.updates():
            expected += record(apart, other, update)
    assert numbers(found) == numbers(expected)
    assert len([event for event in found if isinstance(event, EpochEnded)]) == PLAN.epochs
    assert together.statistics == apart.statistics
    states = dict.fromkeys((0, 1), "")
    done, expected_done = (one.report({}, {}, {}, states).workers for one in (together, apart))
    assert done == expected_done
    assert sum(worker.images for worker in done.values()) == PLAN.examples * PLAN.epochs


def test_the_time_of_a_stretch_is_shared_out() -> None:
    clock, server = [0.0], server_at(0)
    recorder = recorder_of(server, clock, 2)
    first, second = stretches([4, 1])[:2]
    clock[0] = 4.0
    assert [e.seconds for e in record(recorder, server, first) if isinstance(e, Progress)] == [2, 4]
    clock[0] = 6.0
    events = record(recorder, server, second)
    assert [event.seconds for event in events if isinstance(event, Progress)] == [6]
    assert isinstance(events[0], UpdatedByTeam) and isinstance(events[-1], EpochEnded)
