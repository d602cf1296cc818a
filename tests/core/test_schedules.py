"""Learning rates: end points, warm-up, the shapes in between."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.core.optim import SCHEDULES, Schedule

ETA = 0.4


def rates(name, total, **settings):
    schedule = Schedule(name=name, learning_rate=ETA, total=total, **settings)
    return [schedule.at(step) for step in range(total)]


def test_constant():
    assert rates("constant", 5) == [ETA] * 5


def test_cosine_end_points_and_middle():
    schedule = Schedule(name="cosine", learning_rate=ETA, total=100)
    assert schedule.at(0) == ETA
    assert schedule.at(25) == pytest.approx(ETA * (1 + 2**-0.5) / 2)
    assert schedule.at(50) == pytest.approx(ETA / 2)
    assert schedule.at(75) == pytest.approx(ETA * (1 - 2**-0.5) / 2)
    assert 0 < schedule.at(99) < ETA / 1000
    assert schedule.at(100) == schedule.at(101) == 0


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 300), st.integers(0, 50))
def test_cosine_falls_all_the_way_after_the_warmup(total, warmup):
    falling = rates("cosine", total + warmup, warmup=warmup)[warmup:]
    assert falling[0] == ETA
    assert all(before > after > 0 for before, after in pairwise(falling))


def test_step_drops():
    found = rates("step", 8, every=3, factor=0.5)
    assert found == pytest.approx([ETA] * 3 + [ETA / 2] * 3 + [ETA / 4] * 2)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 60), st.integers(1, 20))
def test_step_drops_only_every_so_many_steps(total, every):
    found = rates("step", total, every=every, factor=0.1)
    drops = [step for step in range(1, total) if found[step] < found[step - 1]]
    assert drops == list(range(every, total, every))
    assert all(found[step] == pytest.approx(found[step - 1] * 0.1) for step in drops)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_grows_linearly_to_the_full_rate(name):
    found = rates(name, 20, warmup=4, every=100)
    assert found[:4] == pytest.approx([ETA / 4, ETA / 2, ETA * 3 / 4, ETA])
    assert found[4] == ETA


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_named_schedule_runs_over_the_steps_after_the_warmup(name):
    shape = {"every": 5, "factor": 0.5}
    assert rates(name, 24, warmup=4, **shape)[4:] == rates(name, 20, **shape)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [10, 15])
def test_a_warmup_as_long_as_the_run_or_longer(name, warmup):
    assert rates(name, 10, warmup=warmup) == pytest.approx(
        [ETA * (step + 1) / warmup for step in range(10)]
    )


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 10, 15])
def test_a_step_past_the_end_has_a_rate(name, warmup):
    schedule = Schedule(name=name, learning_rate=ETA, total=10, warmup=warmup)
    assert all(0 <= schedule.at(step) <= ETA * (1 + 1e-15) for step in range(10, 20))


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(SCHEDULES), st.integers(1, 50), st.integers(0, 60))
def test_rates_stay_within_bounds(name, total, warmup):
    found = rates(name, total, warmup=warmup, every=7)
    assert all(0 < rate <= ETA * (1 + 1e-15) for rate in found)
