"""PyTorch in one process: a linear layer, cross-entropy, and torch.optim.SGD.

The classifier, its features and its update rule in PyTorch; for one process and for several.
"""

from __future__ import annotations

from typing import Any

import torch

from distsgd.bench.peers.images import LEARNING_RATE, REGULARIZATION, SCALE, Images, load_images
from distsgd.bench.peers.numpy_loop import minibatches
from distsgd.bench.processes import Found, Task, rate, serve, told

__all__ = ["BATCH", "Features", "make_model", "make_optimizer", "train_step"]


BATCH = 256
"""Examples of a minibatch of one process."""


class Features:
    """The images of a split as tensors, from which minibatches are made.

    Args:
        images: the split.
    """

    def __init__(self, images: Images) -> None:
        self._pixels = torch.from_numpy(images.pixels)
        self._labels = torch.from_numpy(images.labels)
        self._mean = torch.from_numpy(images.mean)

    def minibatch(self, rows: Any) -> tuple[Any, Any]:
        """Features and labels of the examples with these numbers (a tensor, or a slice)."""
        x = self._pixels[rows].to(torch.float32)
        return x.sub_(self._mean).div_(SCALE), self._labels[rows]


def make_model(images: Images) -> Any:
    """A linear layer from pixels to classes."""
    torch.manual_seed(0)
    model = torch.nn.Linear(images.pixels.shape[1], int(images.labels.max()) + 1)
    torch.nn.init.normal_(model.weight, std=1e-4)
    torch.nn.init.zeros_(model.bias)
    return model


def make_optimizer(model: Any, learning_rate: float = LEARNING_RATE) -> Any:
    """SGD with the L2 penalty of ours: lambda W**2 has the gradient 2 lambda W."""
    decay = 2 * REGULARIZATION
    return torch.optim.SGD(model.parameters(), lr=learning_rate, weight_decay=decay)


def train_step(model: Any, optimizer: Any, x: Any, y: Any) -> None:
    """One step on a minibatch; a model of several processes averages their gradients."""
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def _measure(task: Task, _: dict[str, Any]) -> Found:
    torch.set_num_threads(1)
    images = load_images(task.dataset)
    features, model = Features(images), make_model(images)
    optimizer = make_optimizer(model)
    batches = minibatches(len(images.labels), BATCH, 0)

    def step() -> int:
        rows = next(batches)
        train_step(model, optimizer, *features.minibatch(torch.from_numpy(rows)))
        return len(rows)

    return Found(rate(step, task.seconds), {})


if __name__ == "__main__":
    serve(told(), _measure)
