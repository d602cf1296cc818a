"""The floor: what one thread of this machine can do at most, and how near our slots come.

A process of its own; see `child`.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from distsgd.bench.processes import Measured, Task, serve, task_from_arguments
from distsgd.config.jobs import first_weights, make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import as_matrix
from distsgd.data.dataset import open_dataset
from distsgd.engine.blas import best_products, one_blas_thread

__all__ = ["measure"]

_SIDE = 1024
_FLOATS = 2**25
"""Floats of each of two arrays that are read: more than fits into any cache."""


def measure(task: Task, run: dict[str, Any]) -> Measured:
    """Measure one of them; in GFLOP/s, or GB/s."""
    ways = {
        "sgemm": _sgemm, "memory": _memory,
        "slot-products": _slot_products, "slot-kernel": _slot_kernel,
    }  # fmt: skip
    with one_blas_thread():
        return Measured(ways[run["name"]](task) / 1e9, {})


def _best(work: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest call: a floor is not a mean."""
    best, until = float("inf"), perf_counter() + seconds
    while (began := perf_counter()) < until:
        work()
        best = min(best, perf_counter() - began)
    return best


def _usual(work: Callable[[], object], seconds: float) -> float:
    """Seconds of a call, on average, after some to warm up."""
    for _ in range(20):
        work()
    calls, began = 0, perf_counter()
    while (now := perf_counter()) < began + seconds:
        for _ in range(20):
            work()
        calls += 20
    return (now - began) / calls


def _sgemm(task: Task) -> float:
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((_SIDE, _SIDE), np.float32) for _ in range(2))
    out = np.empty_like(a)
    return 2 * _SIDE**3 / _best(lambda: np.matmul(a, b, out=out), task.seconds)


def _memory(task: Task) -> float:
    a, b = (np.ones(_FLOATS, np.float32) for _ in range(2))
    return (a.nbytes + b.nbytes) / _best(lambda: np.dot(a, b), task.seconds)


def _slot(task: Task) -> tuple[Any, ...]:
    """The kernel of the default settings, W, one slot's pixels and labels, and room for dL/dW."""
    config = TrainConfig(dataset=task.dataset)
    dataset = open_dataset(task.dataset)
    job = make_job(config, dataset, best_products())
    flat = first_weights(config, job)
    pixels = np.empty((config.slot_size, job.features), dataset.train.dtype)
    dataset.train.gather(np.arange(config.slot_size), pixels)
    weights = as_matrix(flat, job.classes)
    return job.kernel(), weights, pixels, dataset.train.labels[: len(pixels)], weights.copy()


def _flops(pixels: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> int:
    """Of X W' and P' X; neither the bias nor the padding is counted."""
    return 2 * 2 * int(pixels.size) * len(weights)


def _slot_kernel(task: Task) -> float:
    kernel, weights, pixels, labels, out = _slot(task)
    seconds = _usual(lambda: kernel.gradient(weights, pixels, labels, out), task.seconds)
    return _flops(pixels, weights) / seconds


def _slot_products(task: Task) -> float:
    kernel, weights, pixels, labels, out = _slot(task)
    kernel.gradient(weights, pixels, labels, out)  # fills its buffers
    seconds = _usual(lambda: kernel.products(weights, len(labels), out), task.seconds)
    return _flops(pixels, weights) / seconds


if __name__ == "__main__":
    serve(task_from_arguments(), measure)
