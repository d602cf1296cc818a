"""The parameter server of Ray's documentation: actors, their calls, and a loop on the driver.

Weights and gradients are arguments and results of calls, and each call of the server waits for
the gradients of all workers. Now and then the driver waits for the weights, as the example does
to evaluate them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ray

from distsgd.bench.peers.numpy_loop import (
    BATCH,
    LEARNING_RATE,
    first_weights,
    load_images,
    minibatches,
    softmax_gradient,
)
from distsgd.bench.processes import Measured, Task, rate, serve, task_from_arguments
from distsgd.on_ray.session import ray_session

__all__ = ["DataWorker", "Server"]

_WORKERS = 2
_LOOK_EVERY = 10
"""Steps after which the driver waits for the weights."""


class Server:
    """Holds W with b as its last column."""

    def __init__(self, dataset: str) -> None:
        weights, bias = first_weights(load_images(dataset))
        self._weights = np.column_stack([weights, bias])

    def get_weights(self) -> Any:
        """The weights as they are."""
        return self._weights

    def apply_gradients(self, *gradients: Any) -> Any:
        """One step along the mean of the workers' gradients; returns the new weights."""
        mean = np.mean(np.stack(gradients), axis=0)
        # Results may share memory with what the server holds: a new array each time.
        self._weights = self._weights - np.float32(LEARNING_RATE) * mean
        return self._weights


class DataWorker:
    """Computes gradients of its own minibatches."""

    def __init__(self, dataset: str, number: int) -> None:
        self._images = load_images(dataset)
        self._batches = minibatches(len(self._images.labels), BATCH, number)

    def ready(self) -> None:
        """Returns once the images are loaded."""

    def compute_gradients(self, weights: Any) -> Any:
        """The gradient at these weights."""
        rows = next(self._batches)
        by_weights, by_bias, _ = softmax_gradient(
            weights[:, :-1], weights[:, -1], self._images, rows
        )
        return np.column_stack([by_weights, by_bias])


def _measure(task: Task, _: dict[str, Any]) -> Measured:
    server = ray.remote(Server).options(num_cpus=1).remote(task.dataset)
    workers = [
        ray.remote(DataWorker).options(num_cpus=1).remote(task.dataset, number)
        for number in range(_WORKERS)
    ]
    ray.get([worker.ready.remote() for worker in workers])
    weights = server.get_weights.remote()
    ray.get(weights)

    def steps() -> int:
        nonlocal weights
        for _ in range(_LOOK_EVERY):
            gradients = [worker.compute_gradients.remote(weights) for worker in workers]
            weights = server.apply_gradients.remote(*gradients)
        ray.get(weights)
        return _LOOK_EVERY * _WORKERS * BATCH

    return Measured(rate(steps, task.seconds), {})


if __name__ == "__main__":
    task = task_from_arguments()
    with ray_session(cpus=_WORKERS + 1):
        serve(task, _measure)
