"""The least of servers does the arithmetic of `bsp`, and nothing else."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from distsgd.bench.limits import LeastServer
from distsgd.bench.processes import parse_results, run_process
from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import Floats
from distsgd.core.messages import Push
from distsgd.core.model import initial_weights
from distsgd.data.dataset import Dataset
from distsgd.engine.inline import train_inline
from distsgd.engine.job import Job, Snapshot
from distsgd.engine.worker import Worker
from distsgd.transport.base import Work

STEPS = 5


def after_some_steps(job: Job) -> Floats:
    """W of the product itself."""
    start = Snapshot(0, initial_weights(0, job.classes, job.features, 1e-4, job.dtype), {})
    done: list[None] = []

    def enough() -> bool:
        done.append(None)
        return len(done) == STEPS

    *_, ended = train_inline(job, start, enough)
    return ended.snapshot.weights  # type: ignore[union-attr]


def test_its_arithmetic_is_that_of_bsp(sample: Dataset) -> None:
    job = make_job(TrainConfig(dataset="sample", workers=2, optimizer="sgd"), sample)
    server, given = LeastServer(job, 2), dict[int, Work]()
    workers = [Worker(job), Worker(job)]
    pushes: list[Push | None] = [None, None]
    for number in (0, 1):
        with server.attached(number, lambda work, at=number: given.update({at: work})):
            pass
    for _ in range(STEPS + 1):
        for number, push in enumerate(pushes):
            server.submit(number, push, 0)
        pushes = [worker.answer(*given[number]) for number, worker in enumerate(workers)]
    assert server.images == STEPS * job.plan.batch_size
    np.testing.assert_array_equal(given[0][1], after_some_steps(job))


@pytest.mark.parametrize("limit", ["server", "independent"])
def test_it_is_measured_with_real_workers(limit: str) -> None:
    run = {"name": "one", "limit": limit, "batch_size": 256}
    task = json.dumps({"dataset": "sample", "seconds": 0.2, "runs": [run]})
    finished = run_process([sys.executable, "-m", "distsgd.bench.limits", task], 60)
    (said,) = parse_results(finished.output)
    assert said["value"] > 0
