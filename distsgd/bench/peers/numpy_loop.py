"""A plain numpy loop, and what all peers share: the images, the minibatches, the constants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.bench.environment import check_kernel
from distsgd.bench.processes import Measured, Task, rate, serve, task_from_arguments
from distsgd.data.dataset import open_dataset

__all__ = [
    "BATCH",
    "LEARNING_RATE",
    "REGULARIZATION",
    "SCALE",
    "Images",
    "first_weights",
    "load_images",
    "minibatches",
    "softmax_gradient",
]


SCALE = 64.0
"""What centred pixels are divided by."""

LEARNING_RATE, REGULARIZATION = 0.015, 0.005


@dataclass(frozen=True)
class Images:
    """A split in memory.

    Attributes:
        pixels: shape (examples, features), uint8.
        labels: shape (examples,).
        mean: of each pixel over the training examples, shape (features,), float32.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    mean: NDArray[np.float32]


def load_images(dataset: str, split: str = "train") -> Images:
    """Read a whole split into memory."""
    opened = open_dataset(dataset)
    part = opened.train if split == "train" else opened.test
    pixels = np.concatenate([pixels for pixels, _ in part.batches()])
    return Images(pixels, part.labels.astype(np.int64), opened.pixel_mean.astype(np.float32))


BATCH = 256

Array = NDArray[np.float32]


def first_weights(images: Images) -> tuple[Array, Array]:
    """W, shape (classes, features), small and random; and b, shape (classes,), zero."""
    random, classes = np.random.default_rng(0), int(images.labels.max()) + 1
    weights = 1e-4 * random.standard_normal((classes, images.pixels.shape[1]), np.float32)
    return weights.astype(np.float32), np.zeros(classes, np.float32)


def minibatches(examples: int, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Endless full minibatches as indices of examples, shuffled each epoch."""
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


def _measure(task: Task, run: dict[str, Any]) -> Measured:
    check_kernel(run["kernel"])
    images = load_images(task.dataset)
    weights, bias = first_weights(images)
    batches = minibatches(len(images.labels), BATCH, 0)

    def step() -> int:
        rows = next(batches)
        by_weights, by_bias, _ = softmax_gradient(weights, bias, images, rows)
        np.subtract(weights, np.float32(LEARNING_RATE) * by_weights, out=weights)
        np.subtract(bias, np.float32(LEARNING_RATE) * by_bias, out=bias)
        return len(rows)

    return Measured(rate(step, task.seconds), {})


if __name__ == "__main__":
    serve(task_from_arguments(), _measure)
