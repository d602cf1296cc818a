"""Stacks over worker processes: the same results, also when a worker is killed."""

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from support import on_sample

from distsgd.errors import RuntimeFailure, UsageError
from distsgd.on_ray.stream_pool import stream_pool
from distsgd.tuning.pool import stack_pool, stack_tasks
from distsgd.tuning.stacked import StackedTraining


@pytest.fixture
def configs():
    return [on_sample(epochs=3, learning_rate=0.002 * number) for number in range(1, 6)]


def trained(configs, sample, workers, **options):
    """Results by (setting, epoch), and the last states."""
    results, states = {}, {}
    with stack_pool(workers) as pool:
        for epoch in pool.train(stack_tasks(configs, sample, workers=workers or 2, **options)):
            for one in epoch.results:
                assert (one.setting, one.epoch) not in results
                results[one.setting, one.epoch] = replace(one, seconds=0.0)
            states |= epoch.states
    return results, states


def test_results_come_from_every_stack_under_the_numbers_of_the_settings(configs, sample):
    results, states = trained(configs, sample, 0)
    assert sorted(results) == [(n, e) for n in range(5) for e in (1, 2, 3)]
    training = StackedTraining(configs, sample)
    for epoch in training:
        for one in epoch:
            assert results[one.setting, one.epoch] == replace(one, seconds=0.0)
    for number, state in training.state().items():
        assert np.array_equal(states[number].weights, state.weights)


def test_a_study_goes_on_with_the_best(configs, sample):
    whole, _ = trained(configs, sample, 0)
    first, states = trained(configs, sample, 0, until=1)
    assert sorted(first) == [(n, 1) for n in range(5)]
    kept = {number: states[number] for number in (1, 4)}
    later, _ = trained(configs, sample, 0, states=kept)
    assert later == {(n, e): whole[n, e] for n in (1, 4) for e in (2, 3)}


@dataclass(frozen=True)
class Counts:
    """Counts up; its process dies before some numbers, once each."""

    folder: str
    last: int
    deadly: tuple[int, ...] = ()
    first: int = 0
    wrong: int = -1

    def open(self):
        for number in range(self.first, self.last):
            if number == self.wrong:
                raise UsageError("that cannot be used", "Give another")
            for place, deadly in enumerate(self.deadly):
                mark = Path(self.folder, f"{place}-{deadly}")
                if number == deadly and not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            yield number

    def after(self, result):
        return replace(self, first=result + 1)


@pytest.fixture
def known_to_workers(shared_ray):
    """Workers know no tests."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.ray
@pytest.mark.usefixtures("known_to_workers")
def test_a_task_whose_worker_dies_goes_on_after_its_last_result(tmp_path):
    tasks = [Counts(str(tmp_path), 4, deadly=(2,)), *[Counts(str(tmp_path), 3)] * 3]
    with stream_pool(2) as pool:
        found = list(pool.results(tasks))
        assert [n for task, n in found if task == 0] == [0, 1, 2, 3]
        assert sorted(n for task, n in found if task > 0) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        with pytest.raises(UsageError, match="that cannot be used"):
            list(pool.results([Counts("", 3, wrong=1)]))
        assert [n for _, n in pool.results([Counts("", 2)])] == [0, 1]


@pytest.mark.ray
@pytest.mark.usefixtures("known_to_workers")
def test_workers_that_die_again_and_again_end_it(tmp_path, monkeypatch):
    monkeypatch.setattr("distsgd.on_ray.stream_pool._MOST_DEATHS", 1)
    with stream_pool(1) as pool, pytest.raises(RuntimeFailure, match="workers die repeatedly"):
        list(pool.results([Counts(str(tmp_path), 4, deadly=(1,) * 9)]))


@pytest.mark.ray
@pytest.mark.usefixtures("shared_ray")
def test_stacks_on_workers_have_the_bits_of_one_process(configs, sample):
    results, states = trained(configs, sample, 2)
    expected, here = trained(configs, sample, 0)
    assert results == expected
    assert all(np.array_equal(states[n].weights, here[n].weights) for n in range(5))
