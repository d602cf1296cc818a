"""W split over several servers by contiguous ranges.

The first server is the coordinator: a `ParameterServer` of its own range, which decides what is
leased and applied. The others follow its decisions, one after another: an update, a push that is
not used, and what they mean for W at each lease. A worker gives each follower its part of a push
before it tells the coordinator, so what a decision needs is there, or on its way. Updates are
elementwise, so the bits of W do not depend on the number of servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.messages import Applied, Decision, Dropped, Lease, Push, Update
from distsgd.core.optim import Updater
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import TreeSum
from distsgd.core.server.open_minibatch import OpenMinibatch
from distsgd.core.server.parameter_server import ParameterServer

__all__ = ["Keep", "MergedState", "RangeServer", "SplitServer", "rebuilt"]

_Key = tuple[int, ...]


def rebuilt(update: Update) -> OpenMinibatch:
    """The minibatch of an update, with those pieces in their places that did not make it."""
    pieces = [lease.piece for _, lease in update.contributions]
    for place, step, first, last in sorted(update.requeued):
        pieces.insert(place, (step, first, last))
    lease = update.contributions[0][1]
    return OpenMinibatch(update.step, pieces, steps=lease.steps, replicas=lease.replicas)


@dataclass(frozen=True)
class Keep:
    """Tells range servers to keep their state at this version, to be asked for later."""

    version: int


class RangeServer:
    """A follower: holds one range of W and does as the coordinator has decided.

    Args:
        updater: its range of W.
        plan: the slots of each step.
    """

    def __init__(self, updater: Updater, plan: Plan) -> None:
        self._updater = updater
        weights = updater.weights
        self._tree = TreeSum(plan.most_slots, weights.size, weights.dtype.name)
        self._pushes: dict[_Key, Push] = {}
        self._kept: dict[int, tuple[Floats, dict[str, Floats]]] = {}

    @property
    def version(self) -> int:
        """Updates applied."""
        return self._updater.version

    @property
    def weights(self) -> Floats:
        """This range of W as it is now."""
        return self._updater.weights

    def put(self, worker: int, push: Push) -> None:
        """This range of a push, until the coordinator has decided about it. Twice is once."""
        self._pushes[_key(worker, push.lease)] = push._replace(gradients=push.gradients.copy())

    def ready(self, decision: Decision | Keep) -> bool:
        """Whether all is here that `follow` needs."""
        if not isinstance(decision, Applied):
            return True
        return all(_key(*answer) in self._pushes for answer in decision.contributions)

    def follow(self, decision: Decision | Keep) -> None:
        """Do as the coordinator has decided; its decisions come once each, in their order."""
        if isinstance(decision, Keep):
            self._kept[decision.version] = self.now()
        if isinstance(decision, Dropped) and not decision.twice:
            self._pushes.pop(_key(decision.worker, decision.lease), None)
        elif isinstance(decision, Applied):
            self._apply(decision)

    def kept(self, version: int, floor: int) -> tuple[Floats, dict[str, Floats]] | None:
        """W and the state of the optimiser at a version that was to be kept, or None.

        Versions below ``floor`` are forgotten.
        """
        for older in [older for older in self._kept if older < floor]:
            del self._kept[older]
        return self._kept.get(version)

    def now(self) -> tuple[Floats, dict[str, Floats]]:
        """W and the state of the optimiser as they are now, a copy."""
        state = {name: array.copy() for name, array in self._updater.optimizer.state.items()}
        return self._updater.weights.copy(), state

    def _apply(self, update: Applied) -> None:
        minibatch = rebuilt(update)
        for worker, lease in update.contributions:
            minibatch.leased[lease.piece] = worker, lease
            minibatch.take(worker, self._pushes.pop(_key(worker, lease)), lambda: self._tree)
        apply = self._updater.average if minibatch.replicas else self._updater.apply
        apply(minibatch.gradient(), update.examples, update.step)


def _key(worker: int, lease: Lease) -> _Key:
    """Names one answer of one worker."""
    return (worker, *lease)


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
        self.lost, self.stop, self.reads = coordinator.lost, coordinator.stop, coordinator.reads
        self.residual_serials = coordinator.residual_serials
        self.sampler = coordinator.sampler

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
        followers = [follower.weights for follower in self._followers]
        return np.concatenate([self._coordinator.weights, *followers])

    @property
    def optimizer(self) -> MergedState:
        """The state of all ranges, a copy."""
        states = [self._coordinator.optimizer.state]
        states += [follower.now()[1] for follower in self._followers]
        return MergedState({k: np.concatenate([part[k] for part in states]) for k in states[0]})

    def push(self, worker: int, push: Push) -> list[Decision]:
        """See `ParameterServer.push`."""
        first, *others = self._ranges
        for follower, part in zip(self._followers, others, strict=True):
            follower.put(worker, push._replace(gradients=push.gradients[:, part]))
        own = push._replace(gradients=push.gradients[:, first])
        decisions = self._coordinator.push(worker, own)
        for follower in self._followers:
            for decision in decisions:
                follower.follow(decision)
        return decisions
