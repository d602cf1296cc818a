"""Compare the training of a network of two layers with what one thread of the machine can do.

    python scripts/two_layer_speed.py [HIDDEN ...]

For each number of hidden units: images a second of the products of a slot alone, of the slot
gradients, and of whole steps in one process (gathering, sums and update included), beside the
limit: all products at the speed of a large matrix product. Takes about 30 seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np
from harness.tables import Comparison, print_environment
from threadpoolctl import threadpool_limits

from distsgd.config.jobs import first_weights, make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.messages import Grant
from distsgd.core.model.slot_gradient import TwoLayerKernel
from distsgd.data.dataset import open_dataset
from distsgd.engine.job import Job, Snapshot
from distsgd.engine.worker import Worker

SIDE = 1024
SECONDS = 2.0


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of the median call, after five calls to warm up."""
    for _ in range(5):
        work()
    found, until = [], perf_counter() + SECONDS
    while (began := perf_counter()) < until:
        work()
        found.append(perf_counter() - began)
    return median(found)


def peak() -> float:
    """Floating-point operations a second of a large matrix product."""
    a, b, out = (np.ones((SIDE, SIDE), np.float32) for _ in range(3))
    return 2 * SIDE**3 / seconds_of(lambda: np.matmul(a, b, out=out))


def operations(job: Job, hidden: int) -> int:
    """Floating-point operations of the products of one image, without bias and padding."""
    return 2 * (2 * job.features * hidden + 3 * hidden * job.classes)


def rates(hidden: int) -> tuple[float, dict[str, float]]:
    """Images a second: the limit, and what is measured."""
    config = TrainConfig(model=f"mlp:{hidden}", epochs=1000)
    dataset = open_dataset(config.dataset)
    job = make_job(config, dataset)
    size, slots = job.plan.slot_size, job.plan.most_slots
    first, kernel = first_weights(config, job), job.kernel()
    assert isinstance(kernel, TwoLayerKernel)
    labels = dataset.train.labels[: size * slots].reshape(slots, size)
    dataset.train.gather(np.arange(size), buffer := np.empty((size, job.features), np.uint8))
    out = np.empty((slots, job.parameters), np.float32)

    def write(_: int, rows: np.ndarray) -> None:
        rows[..., : job.features] = buffer

    kernel.gradients(first, labels, out, write)
    products = seconds_of(lambda: [kernel.products(first, size, row) for row in out])
    gradients = seconds_of(lambda: kernel.gradients(first, labels, out, write))
    images = size * slots
    return peak() / operations(job, hidden), {
        "products of a slot": images / products,
        "slot gradients": images / gradients,
        "whole steps": images / seconds_of(one_step(job, first)),
    }


def one_step(job: Job, first: np.ndarray) -> Callable[[], object]:
    """A whole minibatch: a lease, its answer, and the update."""
    worker, server = Worker(job), job.server(Snapshot(0, first, {}))
    decisions = server.pull(0)

    def step() -> None:
        (grant,) = (decision for decision in decisions if isinstance(decision, Grant))
        server.push(0, worker.answer(grant.lease, server.weights))
        worker.get_ready(grant.lease)
        decisions[:] = server.pull(0)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("hidden", nargs="*", type=int, default=[100, 150, 200])
    print_environment()
    table = Comparison("one thread", "images/s", ours="measured", limit="limit")
    with threadpool_limits(1):
        for hidden in parser.parse_args().hidden:
            limit, measured = rates(hidden)
            for name, rate in measured.items():
                table.row(f"mlp:{hidden}, {name}", [rate], limit=[limit])


if __name__ == "__main__":
    main()
