"""The virtual clock: the bits of one process, exactly once, bounded staleness, always an end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.messages import Applied, Lease
from distsgd.core.model import initial_weights
from distsgd.data.dataset import Dataset
from distsgd.engine.events import Ended, Event, Updated
from distsgd.engine.inline import train_inline
from distsgd.engine.job import Job, Snapshot
from distsgd.errors import RuntimeFailure
from distsgd.simulation.fleet import Fleet, Jitter, SharedWeights, VirtualClock
from distsgd.simulation.scenario import fleet_from
from distsgd.simulation.virtual_training import Simulation, lease_examples

POLICIES = [
    {"consistency": "bsp"},
    {"consistency": "ssp", "staleness": 0},
    {"consistency": "ssp", "staleness": 2},
    {"consistency": "asp"},
    {"consistency": "backup", "backup": 2},
    {"consistency": "local", "local_steps": 1},
    {"consistency": "local", "local_steps": 3},
]


def never() -> bool:
    return False


def job_of(dataset: Dataset, **settings: object) -> Job:
    chosen = {"dataset": "sample", "epochs": 2, "slot_size": 32, **settings}
    return make_job(TrainConfig(**chosen), dataset)  # type: ignore[arg-type]


def start_of(job: Job) -> Snapshot:
    return Snapshot(0, initial_weights(0, job.classes, job.features, 1e-4, job.dtype), {})


def run(
    job: Job, fleet: Fleet, seed: int = 0, stop: Callable[[], bool] = never
) -> tuple[list[Event], Simulation]:
    simulation = Simulation(job, start_of(job), fleet, seed)
    return list(simulation.events(stop)), simulation


def ended(events: list[Event]) -> Ended:
    last = events[-1]
    assert isinstance(last, Ended)
    return last


def updates(events: list[Event]) -> list[Applied]:
    return [event.update for event in events if isinstance(event, Updated)]


def inline_bits(job: Job) -> bytes:
    return ended(list(train_inline(job, start_of(job), never))).snapshot.weights.tobytes()


def assert_exactly_once(job: Job, found: list[Applied]) -> None:
    """Every slot of every epoch is in exactly one update."""
    plan = job.plan
    seen: Counter[tuple[int, int]] = Counter()
    examples = 0
    for update in found:
        for _, lease in update.contributions:
            examples += lease_examples(plan, lease)
            if not lease.replicas:
                seen.update((lease.step, slot) for slot in range(lease.first, lease.last))
    assert examples == plan.examples * plan.epochs
    if seen:
        wanted = {(step, s) for step in range(plan.total_steps) for s in range(plan.slots(step))}
        assert set(seen) == wanted and set(seen.values()) == {1}


@pytest.mark.parametrize("workers", range(1, 9))
def test_bsp_has_the_bits_of_one_process(sample: Dataset, workers: int) -> None:
    job = job_of(sample, epochs=1, workers=workers)
    fleet = fleet_from({"workers": workers, "jitter": "pareto:1.1", "latency": 1e-4})
    events, _ = run(job, fleet, seed=workers)
    assert ended(events).finished
    assert ended(events).snapshot.weights.tobytes() == inline_bits(job)


@pytest.mark.parametrize("policy", [POLICIES[1], POLICIES[5]])
def test_ssp_0_and_local_1_too(sample: Dataset, policy: dict[str, object]) -> None:
    bits = inline_bits(job_of(sample))
    events, _ = run(job_of(sample, workers=5, **policy), fleet_from({"workers": 5, "slow": "2:3"}))
    assert ended(events).snapshot.weights.tobytes() == bits


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_run(sample: Dataset, policy: dict[str, object]) -> None:
    job = job_of(sample, workers=6, **policy)
    fleet = fleet_from({"workers": 6, "jitter": "lognormal:1", "slow": "1:4", "fail": "3@0.001"})
    once, twice, other = (run(job, fleet, seed)[0] for seed in (7, 7, 8))
    assert updates(once) == updates(twice)
    assert ended(once).snapshot.weights.tobytes() == ended(twice).snapshot.weights.tobytes()
    assert ended(once).seconds == ended(twice).seconds != ended(other).seconds


FAILURES = {
    "workers": 6, "jitter": "pareto:1.2", "latency": 2e-5, "bandwidth": 1e9,
    "fail": "0@0.0003,1@0.0007,2@0.001,3@0.001,4@0.001,5@0.001,0@0.004,1@0.0045",
    "rejoin": "0@0.0012,1@0.0013,3@0.002,4@0.00205,1@0.005",
}  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_whatever_fails_each_example_is_applied_once(
    sample: Dataset, policy: dict[str, object], seed: int
) -> None:
    job = job_of(sample, workers=6, **policy)
    events, simulation = run(job, fleet_from(FAILURES), seed)
    assert ended(events).finished
    assert_exactly_once(job, updates(events))
    if policy in (POLICIES[0], POLICIES[1], POLICIES[5]):
        assert ended(events).snapshot.weights.tobytes() == inline_bits(job)
    presence, end = simulation.presence(), ended(events).seconds
    assert all(0 <= present <= end * (1 + 1e-9) for present in presence)
    waited = ended(events).statistics.waiting_seconds
    assert all(-1e-12 <= waited[worker] <= presence[worker] + 1e-9 for worker in waited)


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_staleness_is_bounded_and_the_bound_is_used(sample: Dataset, bound: int) -> None:
    job = job_of(sample, workers=8, epochs=3, consistency="ssp", staleness=bound)
    events, _ = run(job, fleet_from({"workers": 8, "slow": "1:10", "jitter": "pareto:1.1"}))
    assert max(ended(events).statistics.ages) == bound
    assert_exactly_once(job, updates(events))


def test_a_slow_worker_delays_bsp_by_its_factor(sample: Dataset) -> None:
    settings = {"batch_size": 300, "slot_size": 60, "epochs": 1, "workers": 5}
    job = job_of(sample, **settings)
    usual, slow = (run(job, fleet_from({"workers": 5, "slow": text}))[0] for text in (None, "1:4"))
    assert ended(slow).seconds == pytest.approx(4 * ended(usual).seconds)
    statistics = ended(slow).statistics
    shares = [statistics.waiting_seconds[w] / ended(slow).seconds for w in range(5)]
    assert shares[0] == pytest.approx(0)
    assert all(0.7 < share < 0.8 for share in shares[1:])
    asynchronous, _ = run(job_of(sample, **settings, consistency="asp"), fleet_from({}))
    assert sum(ended(asynchronous).statistics.ages.values()) == len(updates(asynchronous))


def test_time_is_that_of_the_formula(sample: Dataset) -> None:
    job = job_of(sample, batch_size=1500, slot_size=500, epochs=1)
    fleet = fleet_from({
        "workers": 1, "speed": 1000, "latency": 0.25, "bandwidth": job.vector_bytes, "slow": "1:2",
    })  # fmt: skip
    events, _ = run(job, fleet)
    # pull 0.25 + 1, compute 2 * 1500 / 1000, push 0.25 + 1 (the whole tree in one sum)
    assert ended(events).seconds == pytest.approx(5.5)
    assert ended(events).statistics.bytes_pushed == job.vector_bytes


def test_stopping_keeps_what_was_applied(sample: Dataset) -> None:
    answers = iter([False] * 4 + [True])
    events, _ = run(job_of(sample), fleet_from({}), stop=lambda: next(answers))
    assert not ended(events).finished
    assert len(updates(events)) == ended(events).snapshot.version == 5


def test_when_all_have_failed_it_says_so(sample: Dataset) -> None:
    with pytest.raises(RuntimeFailure, match=r"all simulated workers have failed.*rejoin"):
        run(job_of(sample), fleet_from({"workers": 2, "fail": "0@0.001,1@0.0012"}))


def test_lease_examples_cover_short_minibatches_and_local_steps(sample: Dataset) -> None:
    plan = job_of(sample, batch_size=400, slot_size=64, epochs=1).plan
    assert lease_examples(plan, Lease(3, 0, plan.slots(3), 0)) == 300
    rounds = [lease_examples(plan, Lease(0, r, r + 1, 0, 4, 7)) for r in range(7)]
    assert sum(rounds) == 1500


def test_the_clock_keeps_the_order_of_asking_at_one_time() -> None:
    clock, seen = VirtualClock(), []
    for time, name in ((2.0, "c"), (1.0, "a"), (1.0, "b"), (2.0, "d")):
        clock.at(time, seen.append, name)
    assert len(list(clock.run())) == 4
    assert seen == ["a", "b", "c", "d"] and clock.now == 2.0


def test_copies_are_shared_and_used_anew() -> None:
    copies, weights = SharedWeights(), np.zeros(3, dtype=np.float32)
    for version in (0, 0, 1):
        copies.hold(version, weights + np.float32(version))
    assert len(copies) == 2 and copies.of(1)[0] == 1
    first = copies.of(0)
    copies.release(0)
    assert copies.of(0) is first
    copies.release(0)
    copies.hold(2, weights)
    assert copies.of(2) is first and len(copies) == 2


def test_jitter_is_as_described() -> None:
    def draws(text: tuple[str, tuple[float, ...]], count: int = 4000) -> list[float]:
        random = Fleet().random(1, 2)
        return [Jitter(*text).draw(random) for _ in range(count)]

    assert set(draws(("none", ()), 5)) == {1.0}
    assert np.median(draws(("lognormal", (0.5,)))) == pytest.approx(1, abs=0.05)
    assert np.std(np.log(draws(("lognormal", (0.5,))))) == pytest.approx(0.5, abs=0.03)
    tail = np.array(draws(("pareto", (1.5,))))
    assert tail.min() >= 1 and np.mean(tail > 4) == pytest.approx(4**-1.5, abs=0.02)
    assert np.mean(np.array(draws(("pause", (0.1, 7.0)))) == 7) == pytest.approx(0.1, abs=0.02)
    assert draws(("pareto", (1.5,)), 3) != [
        Jitter("pareto", (1.5,)).draw(Fleet().random(1, 3)) for _ in range(3)
    ]


def test_slowness_goes_by_counts() -> None:
    fleet = fleet_from({"workers": 5, "slow": "1:4,2:1.5"})
    assert fleet.slowness() == [4, 1.5, 1.5, 1, 1]
