"""How near training a network of two layers comes to what one thread of the machine can do.

python scripts/two_layer_speed.py [HIDDEN ...]

Prints, for each number of hidden units: images a second if all products ran at the speed of a
large matrix product, those of the products of a slot alone, of the slot gradients, and of whole
steps in one process (gathering, sums and update included).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np
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
    """Of the median call, after some to warm up."""
    for _ in range(5):
        work()
    found, until = [], perf_counter() + SECONDS
    while (began := perf_counter()) < until:
        work()
        found.append(perf_counter() - began)
    return median(found)


def peak() -> float:
    """Floating-point operations a second of a large product."""
    a, b, out = (np.ones((SIDE, SIDE), np.float32) for _ in range(3))
    return 2 * SIDE**3 / seconds_of(lambda: np.matmul(a, b, out=out))


def operations(job: Job, hidden: int) -> int:
    """Floating-point operations of the products of one image, without bias and padding."""
    return 2 * (2 * job.features * hidden + 3 * hidden * job.classes)


def rates(hidden: int) -> tuple[float, float, float, float]:
    config = TrainConfig(model=f"mlp:{hidden}", epochs=1000)
    dataset = open_dataset(config.dataset)
    job = make_job(config, dataset)
    size, slots = job.plan.slot_size, job.plan.most_slots
    first, kernel = first_weights(config, job), job.kernel()
    assert isinstance(kernel, TwoLayerKernel)
    labels = dataset.train.labels[: size * slots].reshape(slots, size)
    dataset.train.gather(np.arange(size), buffer := np.empty((size, job.features), np.uint8))
    kernel.rows(slots, size)[..., : job.features] = buffer
    out = np.empty((slots, job.parameters), np.float32)
    kernel.gradients(first, labels, out)
    products = seconds_of(lambda: [kernel.products(first, size, row) for row in out])
    gradients = seconds_of(lambda: kernel.gradients(first, labels, out))
    images = size * slots
    return (
        peak() / operations(job, hidden), images / products, images / gradients,
        images / seconds_of(one_step(job, first)),
    )  # fmt: skip


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
    print("hidden  at sgemm speed  products  slot gradients  whole steps  (images/s)")
    with threadpool_limits(1):
        for hidden in parser.parse_args().hidden:
            limit, products, gradients, steps = rates(hidden)
            print(f"{hidden:>6} {limit:>15,.0f} {products:>9,.0f} {gradients:>15,.0f}"
                  f" {steps:>12,.0f}   {steps / limit:.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
