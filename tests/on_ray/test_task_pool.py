"""Tasks spread over workers: order, errors, and workers that die."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import wait_for

from distsgd.errors import RuntimeFailure, UsageError
from distsgd.on_ray.task_pool import task_pool


@dataclass(frozen=True)
class Squares:
    def open(self):
        return lambda number: number**2


@dataclass(frozen=True)
class WhoOpened:
    folder: str

    def open(self):
        Path(self.folder, str(os.getpid())).touch()
        return lambda task: os.getpid()


@dataclass(frozen=True)
class Refuses:
    def open(self):
        def do(task):
            if task == 3:
                raise UsageError("3 cannot be used", "Give another")
            return task

        return do


@dataclass(frozen=True)
class DiesOnce:
    """Each worker that meets a task for the first time dies of it, `deaths` times in all."""

    folder: str
    deaths: int

    def open(self):
        def do(task):
            for death in range(self.deaths):
                try:
                    Path(self.folder, f"{death}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
            return task

        return do


def test_in_this_process_tasks_are_done_when_their_results_are_wanted():
    seen = []
    tasks = (seen.append(i) or i for i in range(1000))
    with task_pool(0) as pool:
        results = pool.map(Squares(), tasks)
        assert [next(results), next(results)] == [0, 1]
    assert seen == [0, 1]


@pytest.mark.ray
class TestOnRay:
    @pytest.fixture(autouse=True)
    def ray(self, shared_ray):
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers know no tests
        yield
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])

    @pytest.mark.parametrize("workers", [0, 3])
    def test_results_come_in_the_order_of_the_tasks(self, workers):
        with task_pool(workers) as pool:
            assert list(pool.map(Squares(), range(40))) == [i**2 for i in range(40)]
            assert list(pool.map(Squares(), [])) == []

    def test_several_processes_take_part_and_each_opens_the_recipe_once(self, tmp_path):
        with task_pool(2) as pool:
            found = set(pool.map(WhoOpened(str(tmp_path)), range(60)))
        assert len(found) == 2 and os.getpid() not in found
        assert {int(file.name) for file in tmp_path.iterdir()} == found

    def test_an_error_of_a_task_comes_through_after_the_results_before_it(self):
        with task_pool(2) as pool:
            results = pool.map(Refuses(), range(6))
            assert [next(results) for _ in range(3)] == [0, 1, 2]
            with pytest.raises(UsageError, match="3 cannot be used"):
                next(results)

    def test_what_a_dead_worker_had_to_do_is_done_by_another(self, tmp_path):
        with task_pool(2) as pool:
            assert list(pool.map(DiesOnce(str(tmp_path), 2), range(20))) == list(range(20))
        assert len(list(tmp_path.iterdir())) == 2

    def test_workers_that_die_again_and_again_end_it(self, tmp_path):
        with task_pool(1) as pool, pytest.raises(RuntimeFailure, match="die repeatedly"):
            list(pool.map(DiesOnce(str(tmp_path), 100), range(20)))

    def test_the_workers_are_gone_when_nobody_wants_more(self, tmp_path):
        import ray

        with task_pool(2) as pool:
            results = pool.map(WhoOpened(str(tmp_path)), range(1000))
            next(results)
            results.close()
            wait_for(lambda: ray.available_resources().get("CPU") == 8)
