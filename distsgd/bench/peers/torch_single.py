"""PyTorch in one process: a linear layer, cross-entropy, and torch.optim.SGD."""

from __future__ import annotations

from typing import Any

import torch

from distsgd.bench.child import Found, Task, rate, serve, told
from distsgd.bench.peers.images import load_images
from distsgd.bench.peers.numpy_loop import minibatches
from distsgd.bench.peers.torch_model import BATCH, Features, make_model, make_optimizer, train_step

__all__: list[str] = []


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
