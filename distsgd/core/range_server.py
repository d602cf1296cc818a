"""W split over several servers by contiguous ranges.

The first server is the coordinator: a `ParameterServer` of its own range, which decides what is
leased and applied. The others follow: a worker gives each its part of a push before it tells the
coordinator, so that a follower has all that an update needs by the time it hears of it. Updates
are elementwise, so the bits of W do not depend on the number of servers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.messages import Applied, Decision, Lease, Push
from distsgd.core.open_minibatch import OpenMinibatch, Piece
from distsgd.core.parameter_server import ParameterServer
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import TreeSum
from distsgd.core.update import Updater

__all__ = ["MergedState", "RangeServer", "SplitServer", "rebuilt"]

_KEPT_VERSIONS = 64
"""Versions that a worker may still ask for after the follower has gone on."""


class Update(Protocol):
    """What `rebuilt` needs to know of an update; `Applied`, or a record of the journal."""

    @property
    def step(self) -> int:
        """Step of the plan that its learning rate belongs to."""

    @property
    def contributions(self) -> tuple[tuple[int, Lease], ...]:
        """Worker and lease of each piece, in order."""

    @property
    def requeued(self) -> tuple[tuple[int, int, int, int], ...]:
        """Place and piece of those that were put off."""


def rebuilt(update: Update) -> OpenMinibatch:
    """The minibatch of an update, with those pieces in their places that did not make it."""
    pieces: list[Piece] = [(at.step, at.first, at.last) for _, at in update.contributions]
    for place, step, first, last in sorted(update.requeued):
        pieces.insert(place, (step, first, last))
    lease = update.contributions[0][1]
    return OpenMinibatch(update.step, pieces, steps=lease.steps, shares=lease.shares)


class RangeServer:
    """A follower: holds one range of W and applies what the coordinator has decided.

    Args:
        updater: its range of W.
        plan: the slots of each step.
    """

    def __init__(self, updater: Updater, plan: Plan) -> None:
        self._updater = updater
        weights = updater.weights
        self._tree = TreeSum(plan.most_slots, weights.size, weights.dtype.name)
        self._pushes: dict[Piece, dict[int, Push]] = {}
        self._kept: OrderedDict[int, Floats] = OrderedDict()
        self._ends: dict[int, tuple[Floats, dict[str, Floats]]] = {}

    @property
    def version(self) -> int:
        """Updates applied."""
        return self._updater.version

    def put(self, push: Push) -> None:
        """This range of a push; used when an update names it. Twice is once."""
        lease = push.lease
        answers = self._pushes.setdefault((lease.step, lease.first, lease.last), {})
        answers[lease.version] = replace(push, gradients=push.gradients.copy())

    def advance(self, updates: Iterable[Applied]) -> None:
        """Apply updates that have not been applied yet, in their order."""
        for update in updates:
            if update.version == self.version + 1:
                self._apply(update)

    def weights_at(self, version: int) -> Floats:
        """This range of W at a version.

        Raises:
            KeyError: it is too old, or still to come.
        """
        return self._updater.weights if version == self.version else self._kept[version]

    def snapshot(self, version: int) -> tuple[Floats, dict[str, Floats]]:
        """W and the state of the optimiser, now or at the end of an epoch.

        Raises:
            KeyError: the version is neither.
        """
        if version in self._ends:
            return self._ends.pop(version)
        if version != self.version:
            raise KeyError(version)
        return self._now()

    def _now(self) -> tuple[Floats, dict[str, Floats]]:
        state = {name: array.copy() for name, array in self._updater.optimizer.state.items()}
        return self._updater.weights.copy(), state

    def _apply(self, update: Applied) -> None:
        self._kept[self.version] = self._updater.weights.copy()
        if len(self._kept) > _KEPT_VERSIONS:
            self._kept.popitem(last=False)
        minibatch = rebuilt(update)
        for worker, lease in update.contributions:
            piece = (lease.step, lease.first, lease.last)
            minibatch.leased[piece] = worker, lease
            minibatch.take(worker, self._pushes.pop(piece)[lease.version], lambda: self._tree)
        apply = self._updater.average if minibatch.shares else self._updater.apply
        apply(minibatch.gradient(), update.examples, update.step)
        if update.ends_epoch:
            self._ends[self.version] = self._now()


@dataclass(frozen=True)
class MergedState:
    """The state of the optimisers of all ranges, as that of one."""

    state: dict[str, Floats]


class SplitServer:
    """A coordinator and its followers in one process, as if they were one `ParameterServer`.

    Args:
        coordinator: server of the first range.
        followers: servers of the others, in order.
        ranges: the ranges of flat W.
    """

    def __init__(
        self,
        coordinator: ParameterServer,
        followers: Sequence[RangeServer],
        ranges: Sequence[slice],
    ) -> None:
        self._coordinator, self._followers, self._ranges = coordinator, followers, ranges
        self.joined, self.pull = coordinator.joined, coordinator.pull
        self.lost, self.stop = coordinator.lost, coordinator.stop

    @property
    def version(self) -> int:
        """Updates applied."""
        return self._coordinator.version

    @property
    def finished(self) -> bool:
        """See `ParameterServer.finished`."""
        return self._coordinator.finished

    @property
    def stopped(self) -> bool:
        """See `ParameterServer.stopped`."""
        return self._coordinator.stopped

    @property
    def weights(self) -> Floats:
        """Flat W as it is now, a copy."""
        parts = [follower.weights_at(self.version) for follower in self._followers]
        return np.concatenate([self._coordinator.weights, *parts])

    @property
    def optimizer(self) -> MergedState:
        """The state of all ranges, a copy."""
        states = [self._coordinator.optimizer.state]
        states += [follower.snapshot(self.version)[1] for follower in self._followers]
        return MergedState({k: np.concatenate([part[k] for part in states]) for k in states[0]})

    def push(self, worker: int, push: Push) -> list[Decision]:
        """See `ParameterServer.push`."""
        first, *others = self._ranges
        for follower, part in zip(self._followers, others, strict=True):
            follower.put(replace(push, gradients=push.gradients[:, part]))
        own = replace(push, gradients=push.gradients[:, first])
        decisions = self._coordinator.push(worker, own)
        updates = [decision for decision in decisions if isinstance(decision, Applied)]
        for follower in self._followers:
            follower.advance(updates)
        return decisions
