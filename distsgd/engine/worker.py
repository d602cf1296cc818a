"""A worker: gathers the rows of its slots, computes their gradients, sums them along the tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease, Message, Piece, Push, ResidualReport, ResidualRequest
from distsgd.core.model import RowWriter, SlotLoss
from distsgd.core.optim import ErrorFeedback
from distsgd.core.plan import EpochOrder
from distsgd.core.reduction_tree import Node, cover, sum_node
from distsgd.data.dataset import Dataset, open_dataset
from distsgd.data.row_cache import Rows, gathered_slots, open_rows
from distsgd.data.split import Split
from distsgd.engine.blas import check_blas_threads
from distsgd.engine.events import Trace
from distsgd.engine.job import Job
from distsgd.transport.base import Channel, Membership, Reply

__all__ = ["Worker", "dataset_of", "labels_of", "work"]


def dataset_of(job: Job) -> Dataset:
    """Open the dataset of a job on this node, at the driver's path or by the name it was given.

    Raises:
        DistsgdError: see `open_dataset`.
    """
    return open_dataset(
        job.dataset or job.folder, folder=Path(job.folder), digest=job.digest,
        cache_limit=job.cache_limit, stream=bool(job.plan.shards), checked=job.found,
    )  # fmt: skip


def labels_of(
    job: Job, split: Split, indices: NDArray[np.int64]
) -> tuple[NDArray[np.integer[Any]], Floats | None]:
    """The labels of training examples, and their factors unless all count alike."""
    labels, weights = split.labels_of(indices), split.weights_of(indices)
    factors: Floats | None = None
    if job.class_factors:
        own = np.array(job.class_factors)[labels]
        factors = (own if weights is None else own * weights).astype(job.dtype, copy=False)
    elif weights is not None:
        factors = (weights / job.mean_weight).astype(job.dtype, copy=False)
    if job.without:
        counts = ~np.isin(indices, job.without)
        factors = counts.astype(job.dtype) if factors is None else factors * counts
    return labels, factors


class _NotNeeded(Exception):
    """Somebody else has computed it meanwhile."""


class _Ahead(NamedTuple):
    """What has been gathered before it is asked for.

    Attributes:
        piece: whose first rows they are.
        labels: of them, shape (slots, examples).
        factors: their weights, of the same shape; None if all count alike.
    """

    piece: Piece
    labels: NDArray[np.integer[Any]]
    factors: Floats | None


def _write_unless(
    unless: Callable[[], bool], rows: Rows, first: int, out: Floats, *place: int
) -> None:
    """Write rows for a kernel as long as they are needed."""
    if unless():
        raise _NotNeeded
    rows.write(first, out, *place)


class Worker:
    """Answers leases. A pure function of (W, lease), with its buffers.

    Args:
        job: the job.
        feedback: its error feedback, if gradients are encoded.
        split: the training examples, where they are open already.
    """

    def __init__(
        self, job: Job, feedback: ErrorFeedback | None = None, split: Split | None = None
    ) -> None:
        self._job, self.feedback = job, feedback
        self.trace = Trace(job.trace)
        self._kernel = job.kernel()
        plan = job.plan
        self._split = dataset_of(job).train if split is None else split
        self._together = gathered_slots(plan.slot_size, plan.most_slots)
        most = self._together * plan.most_examples
        self._rows = open_rows(self._split, job.preprocessing, job.cache, most)
        self._beside: Rows | None = None
        self._halves = job.policy.halves
        rows = self._halves * plan.most_slots
        self._buffer = np.empty((rows, job.parameters), dtype=job.dtype)
        self._gradients = self._buffer  # of the present lease
        self._order = EpochOrder(plan)
        self._window: tuple[int, int] | None = None
        self._ahead: _Ahead | None = None
        self._expected: Piece | None = None
        self._last = Lease(-1, 0, 0, 0)

    def computes_in(self, buffer: Floats | None) -> None:
        """Compute what is asked for in this buffer from now on, such as shared memory."""
        if buffer is not None:
            self._buffer = self._gradients = buffer

    def get_ready(self, lease: Lease) -> None:
        """Gather the rows of the lease that is likely to be next.

        That is the same piece of a later minibatch, as many steps on as this one was from the last.
        If the last guess was wrong, nothing is gathered.
        """
        guessed, plan = self._expected in (None, lease.piece), self._job.plan
        stride = min(max(1, lease.step - self._last.step), 64) if self._last.last else 1
        step = lease.step + stride
        self._last, self._expected = lease, (step, lease.first, lease.last)
        if lease.replicas or step >= plan.total_steps or lease.last > plan.slots(step):
            self._expected = None
        elif guessed:
            self._gather(self._expected)

    def gather(self, lease: Lease | None) -> None:
        """Gather the rows of the next lease, if there is one."""
        if lease is not None and not lease.replicas:
            self._gather(lease.piece)

    def _gather(self, piece: Piece) -> None:
        """Gather the first rows of a piece, which is likely to be asked for next."""
        indices = next(self._slot_examples(*piece))
        self._rows.gather(indices)
        self._ahead = _Ahead(piece, *self._labels_of(indices))
        self.trace.lap("gather")

    def answer(self, lease: Lease, flat: Floats) -> Push:
        """Compute what a lease asks for.

        The gradients are valid until the next call, or the next but one; see `Policy.halves`.

        Args:
            lease: what to compute.
            flat: flat W of the lease's version.

        Raises:
            RuntimeFailure: the number of BLAS threads has been changed meanwhile.
        """
        rows = len(self._buffer) // self._halves
        first = lease.serial % self._halves * rows
        self._gradients = self._buffer[first : first + rows]
        push = self._local_steps(lease, flat) if lease.replicas else self._slots(lease, flat)
        check_blas_threads()
        return self._compressed(push, self.feedback) if self.feedback else push

    def sums(
        self,
        lease: Lease,
        flat: Floats,
        out: Floats,
        *,
        unless: Callable[[], bool] | None = None,
    ) -> list[SlotLoss] | None:
        """Compute a lease in place: the sum of each node goes to the row of its first leaf.

        Args:
            lease: what to compute.
            flat: flat W of the lease's version.
            out: a row for each leaf of the lease.
            unless: for a lease that is somebody else's: asked now and then whether it is not needed
                any more. What has been gathered for this worker's own next lease stays.

        Returns:
            the loss of each slot; None if it is not needed any more.

        Raises:
            RuntimeFailure: as `answer`.
        """
        try:
            if lease.replicas:
                push = self._local_steps(lease, flat, unless)
                np.copyto(out[0], push.gradients[0])
                losses = list(push.losses)
            else:
                losses, _ = self._sums(*lease.piece, flat, out, unless)
        except _NotNeeded:
            return None
        check_blas_threads()
        return losses

    def report(self, request: ResidualRequest) -> ResidualReport:
        """The residual that the server asks for."""
        assert self.feedback is not None
        return ResidualReport(request.serial, self.feedback.left(request.serial))

    def reply_to(self, reply: Reply) -> Message:
        """The answer to what a server sends."""
        if isinstance(reply, ResidualRequest):
            return self.report(reply)
        assert not isinstance(reply, Membership)
        return self.answer(*reply)

    def _compressed(self, push: Push, feedback: ErrorFeedback) -> Push:
        """Encode a push: all nodes in one, and the gradients as the server will decode them."""
        rows = push.gradients
        for row in rows[1:]:
            np.add(rows[0], row, out=rows[0])
        seen = np.zeros_like(rows)
        encoded = feedback.send(push.lease.serial, rows[0], seen[0])
        return Push(push.lease, push.losses, seen, encoded)

    def _slots(self, lease: Lease, flat: Floats) -> Push:
        """The sums of the nodes of a lease."""
        losses, nodes = self._sums(*lease.piece, flat, self._gradients)
        places = [node.first - lease.first for node in nodes]
        # One node, as nearly always, needs no copy.
        sums = self._gradients[places] if len(places) > 1 else self._gradients[:1]
        return Push(lease, tuple(losses), sums)

    def _sums(
        self,
        step: int,
        first: int,
        last: int,
        flat: Floats,
        out: Floats,
        unless: Callable[[], bool] | None = None,
    ) -> tuple[list[SlotLoss], tuple[Node, ...]]:
        """Sum the gradients of slots [first, last) along the tree, each node in its first place."""
        slots = self._job.plan.slots(step)
        nodes, losses = cover(first, last, slots), list[SlotLoss]()
        ranges = [(node.first - first, node.last(slots) - first) for node in nodes]
        rows, write, ahead, place = self._rows, self._rows.write, self._ahead, 0
        if unless is not None:
            rows = self._beside = self._beside or rows.beside()
            write = partial(_write_unless, unless, rows)
        elif ahead is not None and ahead.piece == (step, first, last):
            self.trace.lap("gather")
            losses += self._compute(flat, ahead.labels, ahead.factors, 0, out, write, ranges)
            place = len(ahead.labels)
        if unless is None:
            self._ahead = None
        for indices in self._slot_examples(step, first + place, last):
            rows.gather(indices)
            self.trace.lap("gather")
            labels, factors = self._labels_of(indices)
            losses += self._compute(flat, labels, factors, place, out, write, ranges)
            place += len(indices)
        if not self._kernel.adds_slots:
            for node in nodes:
                sum_node(node, out, first, slots)
        self.trace.lap("sum")
        return losses, nodes

    def _labels_of(
        self, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.integer[Any]], Floats | None]:
        return labels_of(self._job, self._split, indices)

    def _compute(
        self,
        flat: Floats,
        labels: NDArray[np.integer[Any]],
        factors: Floats | None,
        place: int,
        out: Floats,
        write: RowWriter,
        ranges: Sequence[tuple[int, int]],
    ) -> list[SlotLoss]:
        """Gradients of the slots that were gathered last.

        Args:
            flat: flat W.
            labels: shape (slots, examples).
            factors: of the same shape, or None; see `Kernel.gradients`.
            place: of the first of these slots, among those of the lease.
            out: a row for each slot of the lease.
            write: writes their rows.
            ranges: the slots of the lease below each node. A kernel that adds slots adds up those
                of a range, in the row of its first.
        """
        end = place + len(labels)
        part = out[place:end]
        if not self._kernel.adds_slots:
            losses = self._kernel.gradients(flat, labels, part, write, factors)
        else:
            own = [(max(low, place), min(high, end)) for low, high in ranges]
            inside = [(low - place, high - place) for low, high in own if low < high]
            losses = self._kernel.sums(flat, labels, part, write, inside, factors)
            for low, high in ranges:
                if low < place < high:  # it began earlier
                    np.add(out[low], out[place], out=out[low])
        self.trace.lap("compute")
        return losses

    def _local_steps(
        self, lease: Lease, flat: Floats, unless: Callable[[], bool] | None = None
    ) -> Push:
        """Steps of plain SGD on this replica's share of each minibatch of a round."""
        replica, sums = self._job.replica(flat), self._gradients
        losses: list[SlotLoss] = []
        for step, first, last in lease.slots(self._job.plan):
            found, nodes = self._sums(step, first, last, replica.weights, sums, unless)
            total = sums[0]
            for node in nodes[1:]:
                np.add(total, sums[node.first - first], out=total)
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
        if first == last:
            return
        plan, most = self._job.plan, self._together
        epoch = plan.epoch_of(step)
        low, high = plan.slot(step, first)[0], plan.slot(step, last - 1)[1]
        self._expect(epoch, low)
        while low < high:
            slots = min(most, (high - low) // plan.slot_size)
            after = low + slots * plan.slot_size if slots else high
            yield self._order.examples(epoch, low, after).reshape(max(1, slots), -1)
            low = after

    def _expect(self, epoch: int, position: int) -> None:
        """When a window of the order starts, announce the shards that follow."""
        window = (epoch, self._order.window_at(epoch, position))
        if self._window is None or window > self._window:
            self._window = window
            # Two windows, as a minibatch may cross the end of one.
            self._split.expect(self._order.shards_from(*window), 2 * self._job.plan.window)


def work(worker: Worker, channel: Channel, join: Callable[[Membership], int] | None = None) -> int:
    """Answer leases until the server has no more; returns how many.

    Args:
        worker: who works.
        channel: to the server.
        join: works in a team, until that is over, and returns how many pieces it has computed.
    """
    count = 0
    message: Message | None = None
    worker.computes_in(channel.buffer)
    worker.trace.start()
    # The server detects a W that diverges; no warnings about infinities.
    with np.errstate(all="ignore"):
        while True:
            channel.send(message)
            worker.trace.lap("push")
            if isinstance(message, Push):
                worker.get_ready(message.lease)
            received = channel.receive()
            worker.trace.lap("wait")
            if received is None:
                return count
            if isinstance(received, Membership):
                assert join is not None
                count += join(received)
                message = None
                continue
            message = worker.reply_to(received)
            count += 1
