"""The parameter server as a state machine, for every consistency policy.

Messages go in, decisions come out; nothing is sent, timed or written here. Ray, the in-process
loop, the virtual clock and the tests drive this one class.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence

from distsgd.core.arrays import Floats, finite
from distsgd.core.fingerprint import fingerprint
from distsgd.core.messages import (
    Applied,
    Decision,
    Dismiss,
    Diverged,
    Dropped,
    Grant,
    Lease,
    Piece,
    Push,
    Stand,
    StandingLease,
    Stretch,
    incarnation_of,
    next_incarnation,
)
from distsgd.core.optim import Optimizer, Schedule, Updater
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import TreeSum
from distsgd.core.server.consistency import Policy
from distsgd.core.server.consistency.bsp import BulkSynchronous
from distsgd.core.server.open_minibatch import OpenMinibatch
from distsgd.core.server.position import Position, WorkQueue
from distsgd.core.server.sampled_updates import UpdateSampler
from distsgd.core.server.standing import Standing, TeamRecords

__all__ = ["ParameterServer"]

_BEHIND = 2
"""A worker helps with minibatches that are so much older than that of its own next piece. With 1,
workers of one speed would take each other's pieces; the larger it is, the older are gradients."""


class ParameterServer:
    """Holds W, leases slots to workers, and applies updates as its policy decides.

    Args:
        weights: flat parameters, shape (parameters,); owned and updated in place from here on.
        decay: shape (parameters,): the gradient of the L2 penalty is decay * W.
        optimizer: update rule.
        schedule: learning rate of each step.
        plan: the slots of each step.
        policy: when a worker may continue, and which pushes make an update.
        version: updates already applied to ``weights``, of one step of the plan each.
        position: the same in full, for a policy that applies them in another order.
        sampler: copies what sampled updates read and do, if some are to be recomputed.
        own_places: where workers wait for each other, each computes its own places of every
            minibatch, and no other's; for answers that depend on those that a worker gave before.
        fingerprints: whether each update gets the fingerprint of W after it.
    """

    def __init__(
        self,
        weights: Floats,
        *,
        decay: Floats,
        optimizer: Optimizer,
        schedule: Schedule,
        plan: Plan,
        policy: Policy | None = None,
        version: int = 0,
        position: Position | None = None,
        sampler: UpdateSampler | None = None,
        own_places: bool = False,
        fingerprints: bool = False,
    ) -> None:
        position = position or Position.of_step(plan, version)
        self._updater = Updater(
            weights, decay=decay, optimizer=optimizer, schedule=schedule, version=position.version
        )
        self._plan, self._policy = plan, policy or BulkSynchronous()
        self._queue = WorkQueue(plan, self._policy, position)
        self._open: deque[OpenMinibatch] = deque()
        self._spare: list[TreeSum] = []
        self._workers: list[int] = []
        self._waiting: deque[int] = deque()
        self._holding: dict[int, OpenMinibatch] = {}  # worker -> where its lease, if any, is from
        # Worker and half of its buffers -> where the gradients in it are borrowed.
        self._lenders: dict[tuple[int, int], OpenMinibatch] = {}
        self._places: dict[int, int] = {}  # worker -> its piece of a minibatch, counted from 0
        self._sizes: dict[int, int] = {}  # worker -> workers that compute its piece, if several
        self._slow: set[int] = set()  # places of workers that others help
        self._helped: set[int] = set()  # of which others took a piece since their last
        self._applied = Counter(position.examples)
        self._serials = Counter(position.serials)  # worker -> serial of its next lease
        self._used = dict(position.serials)
        self._serials_before = dict(position.serials)
        self._stopping = False
        self._team: tuple[int, ...] = ()  # workers that share memory
        self._standing: Standing | None = None  # what the team has been granted
        self._stretch = 1
        self._late: set[int] = set()  # members that are not waited for
        in_turn = self._policy.in_order and not self._policy.requeues
        self._own_places = own_places and in_turn and self._policy.window(1) == 1
        self.sampler, self._fingerprints = sampler, fingerprints

    @property
    def weights(self) -> Floats:
        """Flat W as it is now."""
        return self._updater.weights

    @property
    def version(self) -> int:
        """Updates applied to W."""
        return self._updater.version

    @property
    def optimizer(self) -> Optimizer:
        """The update rule, with its state."""
        return self._updater.optimizer

    def residual_serials(self) -> dict[int, int] | None:
        """For each worker that has answered here, the serial whose residual belongs to W as it is.

        None if there is none such: a worker has been lost, and its residual with it; or an answer
        waits for its update which its worker gave before another that is in W.
        """
        before = self._serials_before
        found = {
            worker: serial
            for worker, serial in self._used.items()
            if serial != before.get(worker, 0)
        }
        lost = any(
            incarnation_of(self._serials[worker]) > incarnation_of(n) for worker, n in found.items()
        )
        early = any(
            lease.serial < found.get(worker, 0)
            for minibatch in self._open
            for worker, lease in minibatch.arrived.values()
        )
        return None if lost or early else found

    @property
    def finished(self) -> bool:
        """Whether every example of every epoch has been applied."""
        return self._queue.empty and not self._open and not self._busy

    @property
    def stopped(self) -> bool:
        """Whether no more work is handed out."""
        return self._stopping or not (self._open or not self._queue.empty or self._busy)

    @property
    def _busy(self) -> bool:
        """Whether a team has steps that it has not made yet."""
        return self._standing is not None and self._standing.left > 0

    def reads(self) -> set[int]:
        """The versions of W that were read for what is leased, or has come, and is not applied."""
        found = set()
        for minibatch in self._open:
            for _, lease in (*minibatch.leased.values(), *minibatch.arrived.values()):
                found.add(lease.version)
        return found

    def joined(self, worker: int) -> list[Decision]:
        """A worker has come; minibatches opened from now on are cut for it too."""
        if worker not in self._workers:
            self._workers.append(worker)
        return []

    def node_teams(self, sizes: dict[int, int]) -> None:
        """Some workers have others compute their pieces with them, and get larger ones.

        Holds for the minibatches opened from now on, with policies that allow it
        (`Policy.divides`); does nothing with others.

        Args:
            sizes: of each such worker, how many compute its piece; instead of those before.
        """
        if self._policy.divides:
            self._sizes = {worker: size for worker, size in sizes.items() if size > 1}

    def pull(self, worker: int) -> list[Decision]:
        """A worker asks for work; what it still holds is free again, and offered to it first."""
        self.joined(worker)
        self._release(worker)
        self._late.discard(worker)
        if worker not in self._waiting:
            self._waiting.append(worker)
        return self._hand_out()

    def exchange(self, worker: int, push: Push) -> list[Decision]:
        """`push`, borrowing its gradients, and `pull` in one."""
        return [*self._take(worker, push, borrow=True), *self.pull(worker)]

    def push(self, worker: int, push: Push, *, borrow: bool = False) -> list[Decision]:
        """A worker answers a lease. A push that comes twice, or too late, is not used.

        Args:
            worker: who.
            push: its answer.
            borrow: its gradients stay as they are until the worker is granted its next lease
                for the same of its buffers (see `Policy.halves`) or pushes again from there; they
                may be overwritten here. False has them copied now.
        """
        return [*self._take(worker, push, borrow=borrow), *self._hand_out()]

    def _take(self, worker: int, push: Push, *, borrow: bool) -> list[Decision]:
        """Use a push, if it is wanted; and apply what it makes ready."""
        self._settle(worker, push.lease.serial)
        minibatch = None if self.stopped else self._holder(push.lease)
        if minibatch is None or not minibatch.take(worker, push, self._tree, borrow=borrow):
            return [Dropped(worker, push.lease, self._has(worker, push.lease))]
        self._serials[worker] += 1
        if borrow:
            self._lenders[worker, push.lease.serial % self._policy.halves] = minibatch
        decisions: list[Decision] = []
        for ready in self._ready(minibatch):
            decisions.append(self._apply(ready))
            if self._stopping:
                break
        return decisions

    def lost(self, worker: int) -> list[Decision]:
        """A worker has gone: its pieces are free again."""
        if worker in self._workers:
            self._workers.remove(worker)
            self._serials[worker] = next_incarnation(self._serials[worker])
            self._vacate(worker)
        if worker in self._waiting:
            self._waiting.remove(worker)
        self._release(worker)
        return self._hand_out()

    def overdue(self, worker: int) -> list[Decision]:
        """A worker has had its lease for too long: others may have it too; the first push counts.

        Under `local`, a piece belongs to one worker's replica and is never leased to another.
        """
        if self._own_places:
            return []
        self._release(worker)
        self._late.add(worker)
        return self._hand_out()

    def stop(self) -> list[Decision]:
        """Hand out no more work; W stays at the last whole update."""
        self._stopping = True
        return self._hand_out()

    def team(self, members: Sequence[int], updates: int) -> list[Decision]:
        """Workers that share memory make updates by themselves, as soon as none holds a lease.

        They do so while they are all the workers there are; a sampled update is not theirs.

        Args:
            members: their numbers; none for no team.
            updates: how many a standing lease is to have at most.
        """
        fits = self._policy.in_team and not self._own_places
        self._team, self._stretch = tuple(sorted(members)) if fits else (), max(1, updates)
        return self._hand_out()

    def extend(self, updates: int, *, home: bool = False) -> StandingLease | None:
        """Grant a team more, usually before it has made what it has been granted.

        Args:
            updates: as for `team`.
            home: whether it has made that, and W is home.

        Returns:
            the lease that follows; None where the server must act at the end of the present one.
        """
        standing, self._stretch = self._standing, max(1, updates)
        if standing is None or self.stopped or not self._whole_team():
            return None
        if not home and self._plan.ends_epoch(standing.end - 1):
            return None
        return self._grant(standing)

    def stood(self, records: TeamRecords) -> Stretch:
        """A team has made the next updates of its standing leases. W is not known until `home`."""
        assert self._standing is not None
        stretch = self._standing.made(records, self._updater.schedule)
        self._updater.version = stretch.end
        self._applied[stretch.epoch] += int(stretch.examples.sum())
        for worker, serial in self._standing.serials():
            self._serials[worker] = max(self._serials[worker], serial)
            self._used[worker] = max(self._used.get(worker, 0), serial)
        return stretch

    def home(self, weights: Floats, state: dict[str, Floats]) -> None:
        """W and the state of the optimiser, at the version that the last `stood` has brought."""
        self._updater.weights[...] = weights
        for name, array in state.items():
            self._updater.optimizer.state[name][...] = array

    def disbanded(self) -> list[Decision]:
        """A team has ended; what it has not made is to be made by others. W is home."""
        assert self._standing is not None
        standing, self._standing = self._standing, None
        self._queue.move_to(standing.resume_at)
        self._queue.reopen(standing.left_out)
        return self._hand_out()

    def _whole_team(self) -> bool:
        """Whether the team is all that work here."""
        return bool(self._team) and self._team == tuple(sorted(self._workers))

    def _stand(self) -> list[Decision]:
        """Have the team work, if nobody holds a lease."""
        step = self._queue.next_whole
        if step is None or self._open or len(self._waiting) < len(self._team):
            return []
        serials = tuple(self._serials[worker] for worker in self._team)
        standing = Standing(self._plan, self._policy, self._team, serials, step, self.version)
        lease = self._grant(standing)
        if lease is None:
            return []
        self._standing = standing
        self._waiting.clear()
        return [Stand(lease)]

    def _grant(self, standing: Standing) -> StandingLease | None:
        avoid = None if self.sampler is None else self.sampler.samples
        lease = standing.grant(self._stretch, avoid)
        if lease is not None:
            self._queue.move_to(lease.end)
        return lease

    def _release(self, worker: int) -> None:
        """What a worker holds is free again; that is one lease at most."""
        held = self._holding.pop(worker, None)
        if held is not None:
            held.release(worker)

    def _settle(self, worker: int, serial: int) -> None:
        """The gradients of a worker are about to be overwritten by those of a lease."""
        if (lender := self._lenders.pop((worker, serial % self._policy.halves), None)) is not None:
            lender.settle()

    def _holder(self, lease: Lease) -> OpenMinibatch | None:
        for minibatch in self._open:
            if lease.piece in minibatch.leased:
                return minibatch
        return None

    def _has(self, worker: int, lease: Lease) -> bool:
        """Whether a worker's answer to a lease waits for its update."""
        return any((worker, lease) in minibatch.arrived.values() for minibatch in self._open)

    def _ready(self, minibatch: OpenMinibatch) -> list[OpenMinibatch]:
        """The minibatches that a push has made ready, in the order of their updates."""
        ready = []
        for candidate in list(self._open) if self._policy.in_order else [minibatch]:
            arrived, pieces = len(candidate.arrived), len(candidate.pieces)
            if not self._policy.enough(arrived, pieces, candidate.last):
                break
            ready.append(candidate)
        return ready

    def _hand_out(self) -> list[Decision]:
        """Give free pieces to waiting workers."""
        decisions: list[Decision] = []
        if self._standing is None and not self.stopped and self._whole_team():
            decisions += self._stand()
            if not decisions and self._assembling():
                return []
        if self._standing is not None and not self.stopped:
            return decisions
        while self._waiting and not self.stopped and (match := self._match()) is not None:
            worker, source, piece = match
            self._waiting.remove(worker)
            self._holding[worker] = source
            self._settle(worker, self._serials[worker])
            lease = source.lease(worker, self.version, self._serials[worker], piece)
            if self.sampler is not None:
                self.sampler.leased(source, self.version, self.weights)
            decisions.append(Grant(worker, lease))
        if self.stopped:
            decisions.extend(Dismiss(worker) for worker in self._waiting)
            self._waiting.clear()
        return decisions

    def _assembling(self) -> bool:
        """Whether workers wait for the others to come for a standing lease."""
        if self._policy.in_order or self._queue.next_whole is None:
            return False  # they wait for each other anyway
        return len(self._waiting) < len(self._team) and not self._late

    def _match(self) -> tuple[int, OpenMinibatch, Piece] | None:
        """The next waiting worker and its piece; None if no worker gets one."""
        if self._own_places:
            return self._match_owner()
        worker = self._waiting[0]
        if (found := self._piece_for(worker)) is None:
            return None
        self._note_help(worker, *found)
        return worker, *found

    def _match_owner(self) -> tuple[int, OpenMinibatch, Piece] | None:
        """A waiting worker whose own piece of the only open minibatch is free."""
        source = self._open[0] if self._open else self._open_next()
        if source is None:
            return None
        owners = sorted(self._workers)
        for place, piece in enumerate(source.pieces):
            owner = owners[place % len(owners)]
            if piece in source.free and owner in self._waiting:
                return owner, source, piece
        return None

    def _piece_for(self, worker: int) -> tuple[OpenMinibatch, Piece] | None:
        """The piece that a worker gets; None if it has to wait.

        What was given back comes first, as updates wait for it. Then comes the worker's own piece
        of the oldest minibatch where it is free: a worker that is ahead goes through the plan in
        its own place, and can gather rows before it has the lease. But it takes another's piece of
        the oldest minibatch if that is of a slow worker, or `_BEHIND` minibatches older than its
        own, or if it would have to wait otherwise.
        """
        other: tuple[OpenMinibatch, Piece] | None = None
        behind = 0  # minibatches since that of the other's piece
        for minibatch in self._open:
            if minibatch.given_back:
                return minibatch, minibatch.given_back[0]
        for minibatch in self._open:
            if behind >= _BEHIND:
                return other
            if minibatch.free:
                if (piece := self._own_piece(worker, minibatch)) is not None:
                    return minibatch, piece
                if other is None:
                    of_slow = next(filter(None, map(minibatch.free_at, self._slow)), None)
                    other = minibatch, of_slow or minibatch.free[0]
                    behind = _BEHIND if of_slow else 0
            behind += other is not None
        if behind < _BEHIND and (opened := self._open_next()) is not None:
            piece = self._own_piece(worker, opened)
            return (opened, piece) if piece else other or (opened, opened.free[0])
        return other

    def _note_help(self, worker: int, minibatch: OpenMinibatch, piece: Piece) -> None:
        """A worker is slow from when another takes its piece until none is taken between two."""
        if self._policy.requeues or len(minibatch.pieces) < len(self._workers):
            return
        place = minibatch.pieces.index(piece)
        if place != self._place(worker):
            if piece not in minibatch.given_back:
                self._slow.add(place)
                self._helped.add(place)
        elif place in self._helped:
            self._helped.remove(place)
        else:
            self._slow.discard(place)

    def _own_piece(self, worker: int, minibatch: OpenMinibatch) -> Piece | None:
        """The worker's own piece of a minibatch, if it is free."""
        if self._policy.requeues:  # any; what was put off comes first
            return minibatch.free[0]
        place, pieces = self._place(worker), len(minibatch.pieces)
        if pieces >= len(self._workers):
            return minibatch.free_at(place)
        # There is none for some workers, so all are everyone's.
        return minibatch.free_at(place % pieces) or minibatch.free[0]

    def _place(self, worker: int) -> int:
        """Which piece of every minibatch is a worker's own: the first that was nobody's."""
        if worker not in self._places:
            taken = self._places.values()
            self._places[worker] = next(n for n in range(len(taken) + 1) if n not in taken)
        return self._places[worker]

    def _vacate(self, worker: int) -> None:
        """The worker with the last place takes that of a worker that has gone."""
        place = self._places.pop(worker, None)
        if place is not None and self._places:
            last = max(self._places, key=self._places.__getitem__)
            self._places[last] = min(place, self._places[last])

    def _open_next(self) -> OpenMinibatch | None:
        """Open a minibatch, if the policy has room for one more."""
        workers = len(self._workers)
        if self._queue.empty or len(self._open) >= self._policy.window(workers):
            return None
        opened = self._queue.open(workers, self._by_size() if self._sizes else ())
        self._open.append(opened)
        return opened

    def _by_size(self) -> tuple[int, ...]:
        """How many compute each piece of the next minibatch; sets who is to have which.

        The largest come first, so that a piece of 2^n slots is one node of the reduction tree.
        """
        sizes = {worker: self._sizes.get(worker, 1) for worker in self._workers}
        order = sorted(sizes, key=lambda worker: (-sizes[worker], worker))
        self._places.update((worker, place) for place, worker in enumerate(order))
        return tuple(sizes[worker] for worker in order)

    def _tree(self) -> TreeSum:
        if self._spare:
            return self._spare.pop()
        return TreeSum(self._most_leaves(), self.weights.size, self.weights.dtype.name)

    def _most_leaves(self) -> int:
        return self._plan.most_slots

    def _apply(self, minibatch: OpenMinibatch) -> Decision:
        """Apply what has arrived of a minibatch, and close it."""
        loss, correct, examples = minibatch.loss()
        gradient, step, updater = minibatch.gradient(), minibatch.step, self._updater
        if not (math.isfinite(loss) and finite(gradient)):
            self._stopping = True
            return Diverged(step, loss / examples, updater.schedule.at(step))
        if self.sampler is not None:
            self.sampler.before(minibatch, gradient, updater)
        apply = updater.average if minibatch.replicas else updater.apply
        rate = apply(gradient, examples, step)
        if not finite(updater.weights):
            self._stopping = True
            return Diverged(step, math.inf, rate)
        missing = minibatch.missing()
        self._open.remove(minibatch)
        self._queue.put_off((step, first, last) for _, step, first, last in missing)
        self._spare.append(minibatch.close())
        contributions = minibatch.contributions()
        for worker, lease in contributions:
            self._used[worker] = max(self._used.get(worker, 0), lease.serial + 1)
        epoch = self._plan.epoch_of(minibatch.pieces[0][0])
        self._applied[epoch] += examples
        ends_epoch = self._applied[epoch] == self._plan.examples
        applied = Applied(
            step, epoch, self.version, loss / examples, correct, examples, rate,
            contributions, tuple(missing), ends_epoch,
            fingerprint(self.weights) if self._fingerprints else None,
        )  # fmt: skip
        if self.sampler is not None:
            self.sampler.after(minibatch, applied, self.weights)
        return applied
