"""An update taken apart: the gradient of each slot, their sums, and W that follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease
from distsgd.core.optim import Updater
from distsgd.core.plan import EpochOrder
from distsgd.core.reduction_tree import Node, root
from distsgd.core.server import rebuilt
from distsgd.engine.job import Job
from distsgd.engine.worker import Worker, labels_of
from distsgd.proof.replayer import Step
from distsgd.runs import Record
from distsgd.runs.opened_run import OpenedRun

__all__ = ["Leaf", "Rows", "TakenApart", "leaves_of", "rows_of"]


@dataclass(frozen=True)
class Leaf:
    """One slot of an update; with local steps, one replica of a round.

    Attributes:
        worker: who computed it.
        number: of the leaf in the reduction tree of the update.
        lease: the part of the update that is this leaf alone.
    """

    worker: int
    number: int
    lease: Lease


def leaves_of(record: Record) -> list[Leaf]:
    """The leaves that an update was made of, in the order of its tree; deferred ones are absent."""
    owners = {lease.piece: (worker, lease) for worker, lease in record.contributions}
    found, number = [], 0
    for piece in rebuilt(record).pieces:
        for slot in range(piece[1], piece[2]):
            if piece in owners:
                worker, lease = owners[piece]
                alone = lease._replace(first=slot, last=slot + 1)
                found.append(Leaf(worker, number, alone))
            number += 1
    return found


@dataclass(frozen=True, eq=False)
class Rows:
    """The examples of a leaf.

    Attributes:
        examples: their numbers in the training set.
        values: pixels or features, shape (examples, features).
        labels: shape (examples,).
        factors: of the same shape; None if all count alike.
    """

    examples: NDArray[np.int64]
    values: NDArray[np.generic]
    labels: NDArray[np.integer]
    factors: Floats | None


def rows_of(run: OpenedRun, job: Job, lease: Lease, order: EpochOrder | None = None) -> Rows:
    """The examples that a lease is computed from.

    Args:
        run: has the dataset.
        job: has the plan.
        lease: of slots, or of local steps.
        order: of the plan, if several leases are asked for.
    """
    plan, parts = job.plan, []
    order = EpochOrder(plan) if order is None else order
    for step, first, last in lease.slots(plan):
        if first < last:
            low, high = plan.slot(step, first)[0], plan.slot(step, last - 1)[1]
            parts.append(order.examples(plan.epoch_of(step), low, high))
    examples = np.concatenate(parts) if parts else np.empty(0, np.int64)
    split = run.dataset.train
    values = np.empty((len(examples), job.features), dtype=split.dtype)
    split.gather(examples, values)
    return Rows(examples, values, *labels_of(job, split, examples))


class TakenApart:
    """An update whose parts can be changed one by one, to see what W would follow.

    Args:
        run: the run.
        step: the update, recomputed.
        state: of the optimiser before it, flat and padded.

    Attributes:
        leaves: its slots.
        gradients: of each, shape (leaves, parameters).
        rows: the examples of each; none for local steps.
        holds: whether the parts give the bits of W that the recomputed update gave. Encoded
            gradients depend on earlier updates, so they cannot be taken apart.
    """

    def __init__(self, run: OpenedRun, step: Step, state: Mapping[str, Floats]) -> None:
        self.record = step.record
        self.job = job = replace(step.job, cache="shards")
        self.before, self.after = step.before.copy(), step.after.copy()
        self.state = {name: array.copy() for name, array in state.items()}
        self.reads = {version: array.copy() for version, array in step.reads.items()}
        self.leaves = leaves_of(step.record)
        self._local = self.leaves[0].lease.replicas > 0
        self._kernel = job.kernel()
        order = EpochOrder(job.plan)
        self.rows = [rows_of(run, job, leaf.lease, order) for leaf in self.leaves]
        self.examples = sum(len(rows.examples) for rows in self.rows)
        self.gradients = np.empty((len(self.leaves), job.parameters), dtype=job.dtype)
        self._worker = Worker(job, split=run.dataset.train) if self._local else None
        for place, leaf in enumerate(self.leaves):
            self._compute(place, leaf)
        weights = self.before.copy()
        self._updater = Updater(
            weights, decay=job.decay(), optimizer=job.update_rule(weights), schedule=job.schedule
        )
        pieces = rebuilt(step.record).pieces
        self._root = root(sum(high - low for _, low, high in pieces))
        self._places = {leaf.number: place for place, leaf in enumerate(self.leaves)}
        self.sums = self._sums(self.gradients)
        same = self.updated(self.sums[self._root]).tobytes() == self.after.tobytes()
        self.holds = job.compress == "none" and same

    @property
    def by_slots(self) -> bool:
        """Whether the leaves are slots, not replicas of local steps."""
        return not self._local

    def _compute(self, place: int, leaf: Leaf) -> None:
        read = self.reads[leaf.lease.version]
        if self._worker is not None:
            lease = leaf.lease._replace(serial=0)
            self.gradients[place] = self._worker.answer(lease, read).gradients[0]
            return
        rows = self.rows[place]
        self.gradient(read, rows, rows.values, rows.labels, self.gradients[place])

    def gradient(
        self,
        weights: Floats,
        rows: Rows,
        values: NDArray[np.generic],
        labels: NDArray[np.integer],
        out: Floats,
    ) -> Floats:
        """The gradient of one slot, from values and labels that may differ from its rows'."""
        with np.errstate(all="ignore"):
            self._kernel.gradient(weights, values, labels, out, rows.factors)  # type: ignore[arg-type]
        return out

    def _sums(self, gradients: Floats) -> dict[Node, Floats]:
        """The sum of each node of the tree, as `TreeSum.total` adds them."""
        sums: dict[Node, Floats] = {}

        def fill(node: Node) -> Floats | None:
            if node.level == 0:
                if node.number in self._places:
                    sums[node] = gradients[self._places[node.number]]
                return sums.get(node)
            left = fill(Node(node.level - 1, 2 * node.number))
            right = fill(Node(node.level - 1, 2 * node.number + 1))
            if left is not None and right is not None:
                sums[node] = left + right
            elif (one := right if left is None else left) is not None:
                sums[node] = one
            return sums.get(node)

        with np.errstate(all="ignore"):
            fill(self._root)
        return sums

    def summed(self, gradients: Floats) -> Floats:
        """The sum of other gradients of the leaves, shape (leaves, parameters), along the tree."""
        return self._sums(gradients)[self._root]

    def nodes(self) -> Iterator[Node]:
        """The nodes of the tree whose sums are no copies of another's, leaves first."""
        seen: set[int] = set()
        for node in sorted(self.sums):
            if id(self.sums[node]) not in seen:
                seen.add(id(self.sums[node]))
                yield node

    def leaves_below(self, node: Node) -> list[Leaf]:
        """The leaves that a node of the tree is the sum of."""
        low, high = node.first, (node.number + 1) << node.level
        return [leaf for leaf in self.leaves if low <= leaf.number < high]

    def leaf_node(self, place: int) -> Node:
        """The node of a leaf, by its place in `leaves`."""
        return Node(0, self.leaves[place].number)

    def total_with(self, node: Node, vector: Floats) -> Floats:
        """The sum of the whole tree if one node had another sum."""
        total = vector
        while node != self._root:
            beside = Node(node.level, node.number ^ 1)
            if beside in self.sums:
                total = total + self.sums[beside]
            node = Node(node.level + 1, node.number >> 1)
        return total

    def updated(
        self,
        total: Floats,
        before: Floats | None = None,
        state: Mapping[str, Floats] | None = None,
    ) -> Floats:
        """W after the update, made of another sum, another W before it, or another state.

        Args:
            total: sum of the gradients; it stays as it is.
            before: W before the update; None for the right one.
            state: of the optimiser, before the update; None for the right one.
        """
        updater = self._updater
        np.copyto(updater.weights, self.before if before is None else before)
        for name, array in (self.state if state is None else state).items():
            updater.optimizer.state[name][...] = array
        updater.version = self.record.version - 1
        update = updater.average if self._local else updater.apply
        with np.errstate(all="ignore"):
            update(total.copy(), self.examples, self.record.step)
        return updater.weights.copy()

    def with_job(self, run: OpenedRun, job: Job) -> Floats:
        """W after the update if its settings had been others; the examples are the same.

        Args:
            run: the run.
            job: of these settings.
        """
        kernel = job.kernel()
        gradients = np.empty_like(self.gradients)
        if self._local:
            worker = Worker(job, split=run.dataset.train)
            for place, leaf in enumerate(self.leaves):
                lease = leaf.lease._replace(serial=0)
                push = worker.answer(lease, self.reads[lease.version])
                gradients[place] = push.gradients[0]
        else:
            for place, (leaf, rows) in enumerate(zip(self.leaves, self.rows, strict=True)):
                labels, factors = labels_of(job, run.dataset.train, rows.examples)
                read = self.reads[leaf.lease.version]
                with np.errstate(all="ignore"):
                    kernel.gradient(read, rows.values, labels, gradients[place], factors)  # type: ignore[arg-type]
        weights = self.before.copy()
        optimizer = job.update_rule(weights)
        for name, array in self.state.items():
            if name in optimizer.state:
                optimizer.state[name][...] = array
        updater = Updater(
            weights, decay=job.decay(), optimizer=optimizer, schedule=job.schedule,
            version=self.record.version - 1,
        )  # fmt: skip
        update = updater.average if self._local else updater.apply
        with np.errstate(all="ignore"):
            update(self.summed(gradients).copy(), self.examples, self.record.step)
        return weights

    @property
    def total(self) -> Floats:
        """The sum of the gradients of all leaves."""
        return self.sums[self._root]
