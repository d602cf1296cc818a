"""The minibatches of a run in the order in which they are opened, and what was put off."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from distsgd.core.plan import Plan
from distsgd.core.server.consistency.base import Policy
from distsgd.core.server.open_minibatch import OpenMinibatch, Piece
from distsgd.core.server.position import Position

__all__ = ["WorkQueue"]


class WorkQueue:
    """Makes the next minibatch when the server opens one.

    Without requeueing that is the next step of the plan (or the next H of an epoch). With it, a
    minibatch is made of as many slots as the plan's: first those put off, then those that follow
    in the epoch.

    Args:
        plan: the slots of each step.
        policy: how a minibatch is cut.
        position: where to begin.
    """

    def __init__(self, plan: Plan, policy: Policy, position: Position) -> None:
        self._plan, self._policy = plan, policy
        self._step = position.step
        self._put_off: deque[Piece] = deque()
        self._following: deque[Piece] = deque()
        self._holes: deque[Piece] = deque()  # whole steps
        (self._following if policy.requeues else self._holes).extend(position.holes)
        # Examples of the epoch that have been handed out for good.
        self._used = position.examples.get(plan.epoch_of(position.step - 1), 0)

    @property
    def empty(self) -> bool:
        """Whether nothing is left to open."""
        waiting = self._put_off or self._following or self._holes
        return not (waiting or self._step < self._plan.total_steps)

    def open(self, workers: int) -> OpenMinibatch:
        """The next minibatch.

        Args:
            workers: how many there are.
        """
        if self._policy.requeues:
            return self._open_mixed()
        if self._holes:
            return self._cut(self._holes.popleft()[0], 1, workers)
        plan, step = self._plan, self._step
        left = plan.steps_per_epoch - step % plan.steps_per_epoch
        steps = self._policy.steps(left)
        self._step += steps
        return self._cut(step, steps, workers)

    def _cut(self, step: int, steps: int, workers: int) -> OpenMinibatch:
        plan = self._plan
        ranges = self._policy.pieces(plan.slots(step), workers)
        shares = len(ranges) if self._policy.local else 0
        pieces = [(step, *part) for part in ranges]
        return OpenMinibatch(step, pieces, steps=steps, shares=shares)

    def put_off(self, pieces: Iterable[Piece]) -> None:
        """Pieces that did not make their minibatch; they come first in the next."""
        for piece in pieces:
            self._put_off.append(piece)
            self._used -= self._examples(piece)

    def _open_mixed(self) -> OpenMinibatch:
        plan = self._plan
        if not self._put_off and not self._following:
            self._begin_epoch()
        epoch = plan.epoch_of(self._step - 1)
        step = epoch * plan.steps_per_epoch + self._used * plan.steps_per_epoch // plan.examples
        pieces: list[Piece] = []
        while len(pieces) < plan.most_slots and (self._put_off or self._following):
            source = self._put_off or self._following
            pieces.append(source.popleft())
        self._used += sum(self._examples(piece) for piece in pieces)
        return OpenMinibatch(step, pieces, last=not self._following)

    def _begin_epoch(self) -> None:
        plan, policy = self._plan, self._policy
        for step in range(self._step, self._step + plan.steps_per_epoch):
            self._following.extend((step, *part) for part in policy.pieces(plan.slots(step), 0))
        self._step += plan.steps_per_epoch
        self._used = 0

    def _examples(self, piece: Piece) -> int:
        step, first, last = piece
        return self._plan.slot(step, last - 1)[1] - self._plan.slot(step, first)[0]
