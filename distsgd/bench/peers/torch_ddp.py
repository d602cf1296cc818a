"""PyTorch DistributedDataParallel with gloo: two processes of 256 examples a step each.

The processes meet through a file and talk over loopback alone.
"""

from __future__ import annotations

import os
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

from distsgd.bench.peers.images import load_images
from distsgd.bench.peers.torch_single import BATCH, Features, make_model, make_optimizer, train_step
from distsgd.bench.processes import Found, Task, serve, told

__all__ = ["PROCESSES", "joined", "share", "spawn"]

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


def _train(rank: int, meeting: str, answer: str, dataset: str, seconds: float) -> None:
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
        # All make the same number of steps: as many as rank 0 thinks there is time for.
        fitting = round(_WARM_UP_STEPS * seconds / steps(_WARM_UP_STEPS))
        chosen = torch.tensor([max(1, fitting)])
        dist.broadcast(chosen, 0)
        dist.barrier()
        spent = steps(int(chosen))
    if rank == 0:
        rate = PROCESSES * BATCH * int(chosen) / spent
        Path(answer).write_text(repr(rate), encoding="utf-8")


def share(examples: int, rank: int) -> Iterator[Any]:
    """Minibatches of this process's part of the examples, shuffled each epoch, without end.

    All parts have the same number of minibatches, and all of these are full.
    """
    for epoch in count():
        order = torch.randperm(examples, generator=torch.Generator().manual_seed(epoch))
        own = order[rank::PROCESSES]
        for low in range(0, examples // PROCESSES - BATCH + 1, BATCH):
            yield own[low : low + BATCH]


def _measure(task: Task, _: dict[str, Any]) -> Found:
    return Found(spawn(_train, task.dataset, task.seconds), {})


if __name__ == "__main__":
    serve(told(), _measure)
