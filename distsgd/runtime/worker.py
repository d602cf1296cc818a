"""A worker: gathers the rows of its slots, computes their gradients, sums them along the tree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distsgd.channel.base import Channel, Work
from distsgd.core.arrays import Floats, as_matrix
from distsgd.core.compression import ErrorFeedback, make_codec
from distsgd.core.messages import Lease, Push
from distsgd.core.reduction_tree import Node, cover, shares, sum_node
from distsgd.core.slot_gradient import SlotLoss
from distsgd.data.dataset import Dataset
from distsgd.data.row_cache import open_rows
from distsgd.runtime.job import Job

__all__ = ["Worker", "work"]


class Worker:
    """Answers leases. A pure function of (W, lease), with its buffers.

    Args:
        job: the job; its dataset is opened here.
        like: another worker of the same job in this thread, to share its rows of the dataset.
    """

    def __init__(self, job: Job, like: Worker | None = None) -> None:
        self._job = job
        self._kernel = job.kernel()
        plan, columns = job.plan, job.preprocessing.columns
        if like is None:
            split = Dataset(Path(job.folder)).train
            most = self._kernel.slots * plan.slot_size
            self._labels = split.labels
            self._rows = open_rows(split, job.preprocessing, job.cache, most)
        else:
            self._labels, self._rows = like._labels, like._rows
        self._gradients = np.empty((plan.most_slots, job.classes * columns), dtype=job.dtype)
        codec = make_codec(job.compress, job.classes)
        self._feedback: ErrorFeedback | None = None
        if codec is not None:
            shape = self._gradients[0]
            self._feedback = ErrorFeedback(codec, shape, feedback=job.error_feedback)
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def answer(self, work: Work) -> Push:
        """The push for a lease; its gradients are valid until the next call."""
        push = self._local_steps(*work) if work[0].shares else self._slots(*work)
        return self._compressed(push) if self._feedback else push

    def _compressed(self, push: Push) -> Push:
        """The same with all nodes in one, as the server will see it after decoding."""
        assert self._feedback is not None
        rows = push.gradients
        for row in rows[1:]:
            np.add(rows[0], row, out=rows[0])
        seen = np.zeros_like(rows)
        return Push(push.lease, push.losses, seen, self._feedback.send(rows[0], seen[0]))

    def _slots(self, lease: Lease, flat: Floats) -> Push:
        """The sums of the nodes of a lease."""
        losses, nodes = self._sums(lease.step, lease.first, lease.last, flat)
        places = [node.first - lease.first for node in nodes]
        return Push(lease, tuple(losses), self._gradients[places])

    def _sums(
        self, step: int, first: int, last: int, flat: Floats
    ) -> tuple[list[SlotLoss], list[Node]]:
        """Sum the gradients of slots [first, last) along the tree, each node in its first place."""
        plan, classes = self._job.plan, self._job.classes
        weights = as_matrix(flat, classes)
        losses: list[SlotLoss] = []
        place = 0
        for indices in self._slot_examples(step, first, last):
            slots = len(indices)
            self._rows.gather(indices, self._kernel.rows(*indices.shape))
            out = self._gradients[place : place + slots].reshape(slots, classes, -1)
            losses += self._kernel.gradients(weights, self._labels[indices], out)
            place += slots
        slots = plan.slots(step)
        nodes = cover(first, last, slots)
        for node in nodes:
            sum_node(node, self._gradients, first, slots)
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

    def _slot_examples(self, step: int, first: int, last: int) -> Iterator[NDArray[np.int64]]:
        """The examples of slots [first, last), a few slots of one size at a time.

        Yields:
            shape (slots, examples of each).
        """
        plan, most = self._job.plan, self._kernel.slots
        epoch = plan.epoch_of(step)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, plan.order(epoch)
        low, high = plan.slot(step, first)[0], plan.slot(step, last - 1)[1]
        while low < high:
            slots = min(most, (high - low) // plan.slot_size)
            after = low + slots * plan.slot_size if slots else high
            yield self._order[low:after].reshape(max(1, slots), -1)
            low = after


def work(worker: Worker, channel: Channel) -> int:
    """Answer leases until the server has no more; returns how many."""
    count, push = 0, None
    while (received := channel.exchange(push)) is not None:
        # A diverging W gives infinities, which the server finds; no warnings about them.
        with np.errstate(all="ignore"):
            push = worker.answer(received)
        count += 1
    return count
