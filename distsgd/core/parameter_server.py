"""The parameter server as a state machine, here with bulk-synchronous consistency (`bsp`).

Messages go in, decisions come out; nothing is sent, timed or written here. Ray, the in-process
loop and the tests drive this one class.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.messages import Applied, Decision, Dismiss, Diverged, Dropped, Grant, Lease, Push
from distsgd.core.optimizers import Optimizer
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import TreeSum, cover, shares
from distsgd.core.schedules import Schedule
from distsgd.core.slot_gradient import SlotLoss

__all__ = ["ParameterServer"]


class ParameterServer:
    """Holds W, hands out the slots of one minibatch at a time, and applies their mean.

    The slots of a step are cut into one contiguous share for each worker that has joined; the
    shares of a worker that is lost are handed to the others. A share is answered by a push; the
    update is applied when all slots of the step are there, and the next step begins.

    Args:
        weights: flat parameters, shape (parameters,); owned and updated in place from here on.
        decay: shape (parameters,): the gradient of the L2 penalty is decay * W.
        optimizer: update rule.
        schedule: learning rate of each step.
        plan: the slots of each step.
        version: updates already applied to ``weights``.
    """

    def __init__(
        self,
        weights: Floats,
        *,
        decay: Floats,
        optimizer: Optimizer,
        schedule: Schedule,
        plan: Plan,
        version: int = 0,
    ) -> None:
        self.weights = weights
        self.optimizer = optimizer
        self.version = version
        self._decay, self._schedule, self._plan = decay, schedule, plan
        self._scratch = np.empty_like(weights)
        self._tree = TreeSum(plan.most_slots, weights.size, weights.dtype.name)
        self._workers: list[int] = []
        self._waiting: deque[int] = deque()
        self._free: deque[tuple[int, int]] = deque()
        self._leased: dict[tuple[int, int], int] = {}
        self._losses: list[SlotLoss] = []
        self._stopping = False
        self._begin()

    @property
    def finished(self) -> bool:
        """Whether every step of the plan has been applied."""
        return self.version >= self._plan.total_steps

    @property
    def stopped(self) -> bool:
        """Whether no more work is handed out."""
        return self._stopping or self.finished

    def joined(self, worker: int) -> list[Decision]:
        """A worker has come; it counts from the next step on, and may take free shares now."""
        if worker not in self._workers:
            self._workers.append(worker)
        if not self._leased and not self._losses:
            self._begin()  # nothing of this step is under way: cut it anew
        return []

    def pull(self, worker: int) -> list[Decision]:
        """A worker asks for work."""
        self.joined(worker)
        if worker not in self._waiting:
            self._waiting.append(worker)
        return self._hand_out()

    def push(self, worker: int, push: Push) -> list[Decision]:
        """A worker answers a lease. A push that comes twice is used once."""
        lease = push.lease
        key = (lease.first, lease.last)
        if lease.step != self.version or key not in self._leased or self.stopped:
            return [Dropped(worker, lease)]
        del self._leased[key]
        slots = self._plan.slots(lease.step)
        for node, gradient in zip(cover(*key, slots), push.gradients, strict=True):
            self._tree.add(node, gradient)
        self._losses.extend(push.losses)
        if not self._tree.complete:
            return []
        return [self._apply(), *self._hand_out()]

    def lost(self, worker: int) -> list[Decision]:
        """A worker has gone: its shares are free again."""
        if worker in self._workers:
            self._workers.remove(worker)
        if worker in self._waiting:
            self._waiting.remove(worker)
        for key in [key for key, owner in self._leased.items() if owner == worker]:
            del self._leased[key]
            self._free.append(key)
        return self._hand_out()

    def stop(self) -> list[Decision]:
        """Hand out no more work; W stays at the last whole update."""
        self._stopping = True
        return self._hand_out()

    def _begin(self) -> None:
        """Cut the next step into shares."""
        self._losses.clear()
        self._leased.clear()
        self._free.clear()
        if not self.finished:
            slots = self._plan.slots(self.version)
            self._tree.start(slots)
            self._free.extend(shares(slots, max(1, len(self._workers))))

    def _hand_out(self) -> list[Decision]:
        """Give free shares to waiting workers, first come, first served."""
        decisions: list[Decision] = []
        if self.stopped:
            decisions.extend(Dismiss(worker) for worker in self._waiting)
            self._waiting.clear()
        while self._waiting and self._free:
            worker, key = self._waiting.popleft(), self._free.popleft()
            self._leased[key] = worker
            decisions.append(Grant(worker, Lease(self.version, *key, self.version)))
        return decisions

    def _apply(self) -> Decision:
        """Apply the mean gradient of the step that is complete, and begin the next."""
        step, examples = self.version, self._plan.batch_examples(self.version)
        correct = sum(part.correct for part in self._losses)
        loss = _exact_sum([part.loss for part in self._losses]) / examples
        learning_rate = self._schedule.at(step)
        if not math.isfinite(loss):
            self._stopping = True
            return Diverged(step, loss, learning_rate)
        gradient = self._tree.total()
        np.multiply(gradient, gradient.dtype.type(1 / examples), out=gradient)
        np.multiply(self._decay, self.weights, out=self._scratch)
        np.add(gradient, self._scratch, out=gradient)
        self.optimizer.step(self.weights, gradient, learning_rate)
        self.version += 1
        self._begin()
        return Applied(step, self.version, loss, correct, examples, learning_rate)


def _exact_sum(values: Sequence[float]) -> float:
    """The correctly rounded sum, whatever the order of the values; nan if one is not finite."""
    if not all(map(math.isfinite, values)):
        return math.nan
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf
