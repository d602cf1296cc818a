"""A worker: gathers the rows of its slots, computes their gradients, sums them along the tree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distsgd.channel.base import Channel, Work
from distsgd.core.arrays import Floats, as_matrix
from distsgd.core.compression import ErrorFeedback
from distsgd.core.messages import REPORT, Lease, Push
from distsgd.core.reduction_tree import Node, cover, shares, sum_node
from distsgd.core.slot_gradient import SlotLoss
from distsgd.data.dataset import Dataset
from distsgd.runtime.job import Job
from distsgd.runtime.trace import Trace

__all__ = ["Worker", "work"]


class Worker:
    """Answers leases. A pure function of (W, lease), with its buffers.

    Args:
        job: the job; its dataset is opened here.
        feedback: its memory of what has not been sent, if gradients are encoded.
    """

    def __init__(self, job: Job, feedback: ErrorFeedback | None = None) -> None:
        self._job, self.feedback = job, feedback
        self.trace = Trace(job.trace)
        self._split = Dataset(Path(job.folder)).train
        self._kernel = job.kernel()
        plan, columns = job.plan, job.preprocessing.columns
        self._gradients = np.empty((plan.most_slots, job.classes * columns), dtype=job.dtype)
        self._pixels = np.empty((plan.slot_size, job.features), dtype=np.uint8)
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def compute_in(self, buffer: Floats | None) -> None:
        """Where sums are computed from now on, such as memory that the server shares."""
        if buffer is not None:
            self._gradients = buffer

    def answer(self, work: Work) -> Push:
        """The push for a lease; its gradients are valid until the next call."""
        if work[0].step == REPORT:
            return self._report(work[0])
        push = self._local_steps(*work) if work[0].shares else self._slots(*work)
        return self._compressed(push, self.feedback) if self.feedback else push

    def left_over(self, used: dict[int, int]) -> dict[int, Floats]:
        """What each of the workers that this one stands for has left over after some answers."""
        if self.feedback is None:
            return {}
        return {worker: self.feedback.left(serial).copy() for worker, serial in used.items()}

    def _report(self, lease: Lease) -> Push:
        """What is left over after as many answers as the lease says."""
        assert self.feedback is not None
        return Push(lease, (), self.feedback.left(lease.serial)[None])

    def _compressed(self, push: Push, feedback: ErrorFeedback) -> Push:
        """The same with all nodes in one, as the server will see it after decoding."""
        rows = push.gradients
        for row in rows[1:]:
            np.add(rows[0], row, out=rows[0])
        seen = np.zeros_like(rows)
        encoded = feedback.send(push.lease.serial, rows[0], seen[0])
        return Push(push.lease, push.losses, seen, encoded)

    def _slots(self, lease: Lease, flat: Floats) -> Push:
        """The sums of the nodes of a lease."""
        losses, nodes = self._sums(lease.step, lease.first, lease.last, flat)
        places = [node.first - lease.first for node in nodes]
        # One node, as nearly always, needs no copy.
        sums = self._gradients[places] if len(places) > 1 else self._gradients[:1]
        return Push(lease, tuple(losses), sums)

    def _sums(
        self, step: int, first: int, last: int, flat: Floats
    ) -> tuple[list[SlotLoss], list[Node]]:
        """Sum the gradients of slots [first, last) along the tree, each node in its first place."""
        weights = as_matrix(flat, self._job.classes)
        losses = []
        for place, slot in enumerate(range(first, last)):
            indices = self._indices(step, slot)
            pixels = self._pixels[: len(indices)]
            self._split.gather(indices, pixels)
            self.trace.lap("gather")
            out = as_matrix(self._gradients[place], self._job.classes)
            losses.append(self._kernel.gradient(weights, pixels, self._split.labels[indices], out))
            self.trace.lap("compute")
        slots = self._job.plan.slots(step)
        nodes = cover(first, last, slots)
        for node in nodes:
            sum_node(node, self._gradients, first, slots)
        self.trace.lap("sum")
        return losses, nodes

    def _local_steps(self, lease: Lease, flat: Floats) -> Push:
        """Steps of plain SGD on this replica's share of each minibatch of a round."""
        replica = self._job.replica(flat)
        losses: list[SlotLoss] = []
        for step in range(lease.step, lease.step + lease.steps):
            parts = shares(self._job.plan.slots(step), lease.shares)
            if lease.first >= len(parts):
                continue  # a short minibatch has fewer slots than there are replicas
            first, last = parts[lease.first]
            found, nodes = self._sums(step, first, last, replica.weights)
            total = self._gradients[0]
            for node in nodes[1:]:
                np.add(total, self._gradients[node.first - first], out=total)
            replica.apply(total, sum(part.examples for part in found), step)
            losses += found
        examples = sum(part.examples for part in losses)
        difference = (flat - replica.weights) * flat.dtype.type(examples)
        return Push(lease, tuple(losses), difference[None])

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
    worker.compute_in(channel.buffer)
    worker.trace.start()
    while True:
        channel.send(push)
        worker.trace.lap("push")
        received = channel.receive()
        worker.trace.lap("wait")
        if received is None:
            return count
        # A diverging W gives infinities, which the server finds; no warnings about them.
        with np.errstate(all="ignore"):
            push = worker.answer(received)
        count += 1
