"""A worker: gathers the rows of its slots, computes their gradients, sums them along the tree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distsgd.channel.base import Channel, Work
from distsgd.core.arrays import as_matrix
from distsgd.core.messages import Push
from distsgd.core.reduction_tree import cover, sum_node
from distsgd.data.dataset import Dataset
from distsgd.runtime.job import Job

__all__ = ["Worker", "work"]


class Worker:
    """Answers leases. A pure function of (W, lease), with its buffers.

    Args:
        job: the job; its dataset is opened here.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._split = Dataset(Path(job.folder)).train
        self._kernel = job.kernel()
        plan, columns = job.plan, job.preprocessing.columns
        self._gradients = np.empty((plan.most_slots, job.classes * columns), dtype=job.dtype)
        self._pixels = np.empty((plan.slot_size, job.features), dtype=np.uint8)
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def answer(self, work: Work) -> Push:
        """The push for a lease; its gradients are valid until the next call."""
        lease, flat = work
        weights = as_matrix(flat, self._job.classes)
        losses = []
        for place, slot in enumerate(range(lease.first, lease.last)):
            indices = self._indices(lease.step, slot)
            pixels = self._pixels[: len(indices)]
            self._split.gather(indices, pixels)
            out = as_matrix(self._gradients[place], self._job.classes)
            losses.append(self._kernel.gradient(weights, pixels, self._split.labels[indices], out))
        slots = self._job.plan.slots(lease.step)
        nodes = cover(lease.first, lease.last, slots)
        for node in nodes:
            sum_node(node, self._gradients, lease.first, slots)
        sums = self._gradients[[node.first - lease.first for node in nodes]]
        return Push(lease, tuple(losses), sums)

    def _indices(self, step: int, slot: int) -> NDArray[np.int64]:
        plan = self._job.plan
        epoch = plan.epoch_of(step)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, plan.order(epoch)
        low, high = plan.slot(step, slot)
        return self._order[low:high]


def work(worker: Worker, channel: Channel) -> int:
    """Answer leases until the server has no more; returns how many."""
    count, push = 0, None
    while (received := channel.exchange(push)) is not None:
        # A diverging W gives infinities, which the server finds; no warnings about them.
        with np.errstate(all="ignore"):
            push = worker.answer(received)
        count += 1
    return count
