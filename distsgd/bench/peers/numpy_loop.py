"""One plain numpy loop: minibatch gradient descent as one writes it after the lecture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.bench.peers.images import LEARNING_RATE, REGULARIZATION, SCALE, Images, load_images
from distsgd.bench.processes import Found, Task, rate, serve, told

__all__ = ["BATCH", "first_weights", "minibatches", "softmax_gradient"]

BATCH = 256

Array = NDArray[np.float32]


def first_weights(images: Images) -> tuple[Array, Array]:
    """W, shape (classes, features), small and random; and b, shape (classes,), zero."""
    random, classes = np.random.default_rng(0), int(images.labels.max()) + 1
    weights = 1e-4 * random.standard_normal((classes, images.pixels.shape[1]), np.float32)
    return weights.astype(np.float32), np.zeros(classes, np.float32)


def minibatches(examples: int, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Numbers of the examples of minibatches, shuffled each epoch, without end; all are full."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(examples)
        for low in range(0, examples - size + 1, size):
            yield order[low : low + size]


def softmax_gradient(
    weights: Array, bias: Array, images: Images, rows: NDArray[np.int64]
) -> tuple[Array, Array, float]:
    """Gradients of W and b, and the loss, of one minibatch."""
    x = images.pixels[rows].astype(np.float32)
    x -= images.mean
    x /= np.float32(SCALE)
    y = images.labels[rows]
    scores = x @ weights.T + bias
    scores -= scores.max(axis=1, keepdims=True)
    p = np.exp(scores)
    p /= p.sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    p[np.arange(len(y)), y] -= 1
    p /= np.float32(len(y))
    loss += REGULARIZATION * np.sum(weights * weights)
    return p.T @ x + np.float32(2 * REGULARIZATION) * weights, p.sum(axis=0), float(loss)


def _measure(task: Task, _: dict[str, Any]) -> Found:
    images = load_images(task.dataset)
    weights, bias = first_weights(images)
    batches = minibatches(len(images.labels), BATCH, 0)

    def step() -> int:
        rows = next(batches)
        by_weights, by_bias, _ = softmax_gradient(weights, bias, images, rows)
        np.subtract(weights, np.float32(LEARNING_RATE) * by_weights, out=weights)
        np.subtract(bias, np.float32(LEARNING_RATE) * by_bias, out=bias)
        return len(rows)

    return Found(rate(step, task.seconds), {})


if __name__ == "__main__":
    serve(told(), _measure)
