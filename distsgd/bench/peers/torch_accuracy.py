"""A whole PyTorch DDP script: trains for some epochs and prints the test accuracy.

    python -m distsgd.bench.peers.torch_accuracy DATASET EPOCHS LEARNING_RATE

Two processes of 256 examples a step each, SGD with a cosine schedule.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from distsgd.bench.peers.images import load_images
from distsgd.bench.peers.torch_ddp import PROCESSES, joined, share, spawn
from distsgd.bench.peers.torch_single import BATCH, Features, make_model, make_optimizer, train_step

__all__: list[str] = []


def _train(
    rank: int, meeting: str, answer: str, dataset: str, epochs: int, learning_rate: float
) -> None:
    with joined(rank, meeting):
        images = load_images(dataset)
        features, model = Features(images), DistributedDataParallel(make_model(images))
        optimizer, batches = make_optimizer(model, learning_rate), share(len(images.labels), rank)
        steps = len(images.labels) // PROCESSES // BATCH
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
        for _ in range(epochs):
            for _ in range(steps):
                train_step(model, optimizer, *features.minibatch(next(batches)))
                schedule.step()
            if rank == 0:
                Path(answer).write_text(repr(_accuracy(model.module, dataset)), encoding="utf-8")


def _accuracy(model: Any, dataset: str) -> float:
    test = load_images(dataset, "test")
    with torch.no_grad():
        x, y = Features(test).minibatch(slice(None))
        return float((model(x).argmax(dim=1) == y).float().mean())


if __name__ == "__main__":
    print(spawn(_train, sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
