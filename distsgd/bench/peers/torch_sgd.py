"""PyTorch: a linear layer, cross-entropy and torch.optim.SGD, in one process or in two.

Two processes use DistributedDataParallel with gloo, 256 examples a step each. They meet through a
file and talk over loopback alone. With arguments of its own, the module is a whole script that
trains with a cosine schedule for some epochs and prints the test accuracy:

    python -m distsgd.bench.peers.torch_sgd DATASET EPOCHS LEARNING_RATE
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.nn.parallel import DistributedDataParallel

from distsgd.bench.peers.numpy_loop import (
    LEARNING_RATE,
    REGULARIZATION,
    SCALE,
    Images,
    load_images,
    minibatches,
)
from distsgd.bench.processes import Measured, Task, rate, serve, task_from_arguments

__all__: list[str] = []


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
    """SGD with the L2 penalty of distsgd: lambda W**2 has the gradient 2 lambda W."""
    decay = 2 * REGULARIZATION
    return torch.optim.SGD(model.parameters(), lr=learning_rate, weight_decay=decay)


def train_step(model: Any, optimizer: Any, x: Any, y: Any) -> None:
    """One step on a minibatch; a model of several processes averages their gradients."""
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def _one_process(task: Task) -> float:
    """Examples a second of one process."""
    torch.set_num_threads(1)
    images = load_images(task.dataset)
    features, model = Features(images), make_model(images)
    optimizer = make_optimizer(model)
    batches = minibatches(len(images.labels), BATCH, 0)

    def step() -> int:
        rows = next(batches)
        train_step(model, optimizer, *features.minibatch(torch.from_numpy(rows)))
        return len(rows)

    return rate(step, task.seconds)


PROCESSES = 2
_WARM_UP_STEPS = 30


@contextmanager
def joined(rank: int, meeting: str) -> Iterator[None]:
    """Within it, this process is one of the group.

    Args:
        rank: its number in the group.
        meeting: path of a file that all of the group share, and that does not exist yet.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def spawn(work: Callable[..., None], *arguments: Any) -> float:
    """Run ``work(rank, meeting, answer, *arguments)`` in all processes of the group.

    Returns:
        the number that rank 0 wrote to the file ``answer``.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting, answer = Path(folder) / "meeting", Path(folder) / "answer"
        multiprocessing.spawn(work, (str(meeting), str(answer), *arguments), nprocs=PROCESSES)
        return float(answer.read_text(encoding="utf-8"))


def _train_for_seconds(rank: int, meeting: str, answer: str, dataset: str, seconds: float) -> None:
    with joined(rank, meeting):
        images = load_images(dataset)
        features, model = Features(images), DistributedDataParallel(make_model(images))
        optimizer, batches = make_optimizer(model), share(len(images.labels), rank)

        def steps(number: int) -> float:
            began = perf_counter()
            for _ in range(number):
                train_step(model, optimizer, *features.minibatch(next(batches)))
            return perf_counter() - began

        steps(_WARM_UP_STEPS)
        # All take the same number of steps: as many as fit into the time by rank 0's measure.
        fitting = round(_WARM_UP_STEPS * seconds / steps(_WARM_UP_STEPS))
        chosen = torch.tensor([max(1, fitting)])
        dist.broadcast(chosen, 0)
        dist.barrier()
        spent = steps(int(chosen))
    if rank == 0:
        per_second = PROCESSES * BATCH * int(chosen) / spent
        Path(answer).write_text(repr(per_second), encoding="utf-8")


def share(examples: int, rank: int) -> Iterator[Any]:
    """Minibatches of this process's part of the examples, shuffled each epoch, without end.

    All parts have the same number of minibatches, and all of these are full.
    """
    for epoch in count():
        order = torch.randperm(examples, generator=torch.Generator().manual_seed(epoch))
        own = order[rank::PROCESSES]
        for low in range(0, examples // PROCESSES - BATCH + 1, BATCH):
            yield own[low : low + BATCH]


def _train_for_epochs(
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


def _measure(task: Task, run: dict[str, Any]) -> Measured:
    if run["processes"] == 1:
        return Measured(_one_process(task), {})
    return Measured(spawn(_train_for_seconds, task.dataset, task.seconds), {})


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(task_from_arguments(), _measure)
    else:
        print(spawn(_train_for_epochs, sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
