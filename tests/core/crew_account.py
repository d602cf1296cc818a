"""What must hold of a server and its workers after every message, in terms of promises.

The account is kept by what the workers saw and what the policy promises, not by the server's code.
"""

from collections import Counter
from dataclasses import replace
from math import fsum

import numpy as np
from reference_weights import Reference, plain_local, plain_sgd
from slot_sets import SlotSets, piece_of

from distsgd.core.messages import Applied, Dismiss, Dropped, Grant, Lease
from distsgd.core.reduction_tree import TreeSum, shares
from distsgd.core.server import Ledger, UpdateCheck

MOST_WORKERS = 7


class CountedTree(TreeSum):
    """Counts how many places to sum in have been made."""

    made = 0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        CountedTree.made += 1


class Account:
    """Who holds what and what was used; every decision is checked against it as it is made.

    Attributes:
        workers: those that live.
        waiting: those that have pulled and have not been answered, first come first.
        standing: piece -> worker and lease, of all that are leased out now.
        given_up: leases that stand no more, but whose answers may still come.
        seen: what has happened, and how often.
    """

    def __init__(self, toy, promise):
        self.toy, self.plan, self.promise, self.server = toy, toy.plan, promise, toy.server()
        self.reference = Reference(toy)
        self.workers, self.waiting, self.standing = [], {}, {}
        self.given_up, self.seen = [], Counter()
        self._slots = SlotSets(toy.plan, promise.local_steps)
        self._pushed = {}  # piece -> worker, lease and losses, until it is applied
        self._arrived = self._used = self._put_off = self._freed = 0
        self._open = {}  # first step -> workers that it was cut for
        self._next_step = self._most_workers = 0
        self._lent = {}  # buffer of a worker -> gradients that the server may still read
        self._places = {}  # worker -> its own place, if it was seen since the fleet last shrank
        self._serials = Counter()  # worker -> serial of its next lease
        self._trees_before = CountedTree.made
        # It must take whatever a server does; `test_update_check` has what it must not take.
        self._check = UpdateCheck(toy.plan, toy.policy, Ledger(), MOST_WORKERS)

    @property
    def finished(self):
        return self._used == self._slots.all

    def _give_up(self, worker):
        for piece, (holder, lease) in list(self.standing.items()):
            if holder == worker:
                del self.standing[piece]
                self.given_up.append((holder, lease))
                self._freed |= self._slots.of(lease)

    def _carry_out(self, decisions):
        self._most_workers = max(self._most_workers, len(self.workers))
        for decision in decisions:
            match decision:
                case Applied():
                    self._check_applied(decision)
                case Grant(worker, lease):
                    self._check_grant(worker, lease)
                case Dismiss(worker):
                    assert self.finished, "it was sent away before the end"
                    del self.waiting[worker]
                case _:
                    assert isinstance(decision, Dropped)
        self._check_state()

    def _check_state(self):
        """After every message: W has the bits of the reference, and nobody waits in vain."""
        last = self.reference.versions[-1]
        assert self.server.weights.tobytes() == last.tobytes(), "W has other bits"
        assert self.server.version == len(self.reference.versions) - 1
        assert self.server.finished == self.finished
        assert (self._check.ledger.whole == self.plan.total_steps) == self.finished
        assert len(self.standing) <= len(self.workers)
        if self.waiting:
            assert not self.finished, "it waits after the end"
            assert self.standing, "all wait, nobody works"
            self._check_nothing_is_free()

    def _check_nothing_is_free(self):
        taken = self._taken()
        if self.promise.backup:
            left = self._slots.of_epoch[self._epoch()] & ~self._used
            assert taken.bit_count() == min(self.plan.most_slots, left.bit_count())
            return
        opened = sum(map(self._slots.round, self._open))
        assert not opened & ~taken, "a piece lies free while a worker waits"
        full = len(self._open) >= self.promise.window(len(self.workers))
        assert full or opened | self._used == self._slots.all, "a minibatch could be opened"

    def _check_grant(self, worker, lease):
        """Only who asked is answered; the version is the last; the piece is nobody else's."""
        assert worker in self.workers
        assert worker == next(iter(self.waiting), None), "first come, first served"
        del self.waiting[worker]
        assert all(worker != holder for holder, _ in self.standing.values())
        assert lease.version == self.server.version
        assert lease.serial == self._serials[worker]
        for gradients in self._lent.pop(self._buffer(worker, lease), []):
            gradients[...] = np.nan  # as a worker that computes its next sums in the same place
        assert not self._slots.of(lease) & (self._taken() | self._used)
        self._check_opened(worker, lease)
        freed = not self._freed or self._slots.of(lease) & self._freed
        assert freed, "what was given up comes first"
        self._freed &= ~self._slots.of(lease)
        self.standing[piece_of(lease)] = worker, lease

    def _buffer(self, worker, lease):
        """A worker that may be ahead computes in two buffers in turn, by the serials."""
        ahead = bool(self.promise.staleness)
        return worker, lease.serial % 2 if ahead else 0

    def _check_opened(self, worker, lease):
        if self.promise.backup:
            assert self.plan.epoch_of(lease.step) == self._epoch(), "it is from another epoch"
            return
        if self.promise.staleness is not None:
            assert 0 <= lease.step - self._next_step <= self.promise.staleness, "too far ahead"
        if lease.step not in self._open:
            self._open[lease.step] = len(self.workers)
            assert len(self._open) <= self.promise.window(len(self.workers)), "too many open"
        taken = self._taken() | self._slots.of(lease)
        older = [step for step in self._open if step < lease.step]
        passed = [step for step in older if self._slots.round(step) & ~taken]
        if passed and not self._slots.of(lease) & self._freed:
            self._check_own(worker, lease, passed)

    def _check_own(self, worker, lease, passed):
        """The oldest minibatch comes first, unless its free pieces are others' and this is not."""
        pieces = [self.promise.pieces(self.plan.slots(step), self._open[step]) for step in passed]
        assert min(pieces) >= len(self.workers), "the oldest minibatch comes first"
        assert lease.step - min(passed) == 1, "it should help with what is older"
        slots = self.plan.slots(lease.step)
        cut = shares(slots, self.promise.pieces(slots, self._open[lease.step]))
        if len(cut) < len(self.workers):  # anyone's
            return
        place = cut.index((lease.first, lease.last))
        assert self._places.setdefault(worker, place) == place, "it has two places"
        assert len({*self._places.values()}) == len(self._places), "two workers have one place"
        self.seen["own place"] += 1

    def _check_applied(self, update):
        self._check.add(update)
        leases = [lease for _, lease in update.contributions]
        used = sum(map(self._slots.of, leases))
        assert used == self._slots.union(leases), "a slot is twice in an update"
        assert not used & self._used, "a slot was applied before"
        assert not used & ~self._arrived, "a slot was applied that has not come"
        self._check_mean(update)
        self._check_staleness(update, leases)
        missing = [Lease(*piece, 0) for _, *piece in update.requeued]
        if self.promise.backup:
            self._check_backup(update, used, leases, missing)
        else:
            self._check_whole(update, used, leases)
        self._used |= used
        self._arrived &= ~used
        self._check_epoch(update, used)
        places = [place for place, *_ in update.requeued]
        self.reference.update(update.step, update.examples, leases, places)
        assert update.version == len(self.reference.versions) - 1

    def _check_mean(self, update):
        """The update says who pushed what, and its numbers are those of all its examples."""
        losses = []
        for worker, lease in update.contributions:
            pushed = self._pushed.pop(piece_of(lease))
            assert pushed[:2] == (worker, lease)
            losses += pushed[2]
        slots = [slot for _, lease in update.contributions for slot in self._slots.listed(lease)]
        bounds = [self.plan.slot(*slot) for slot in slots]
        assert update.examples == sum(high - low for low, high in bounds)
        assert update.examples == sum(loss.examples for loss in losses)
        assert update.correct == sum(loss.correct for loss in losses)
        assert update.loss == fsum(loss.loss for loss in losses) / update.examples
        assert update.learning_rate == self.toy.schedule().at(update.step)

    def _check_staleness(self, update, leases):
        now = len(self.reference.versions) - 1
        staleness = [now - lease.version for lease in leases]
        assert update.ages == staleness
        assert min(staleness) >= 0
        if self.promise.staleness is not None:
            assert max(staleness) <= self.promise.staleness, "too stale"
        self.seen["staleness", max(staleness)] += 1

    def _check_whole(self, update, used, leases):
        """All of one minibatch, or of one round; in the order of the plan unless asynchronous."""
        assert not update.requeued
        assert used == self._slots.round(update.step)
        workers = self._open.pop(update.step)
        assert len(leases) == self.promise.pieces(self.plan.slots(update.step), workers)
        if self.promise.staleness is None:
            return
        assert update.step == self._next_step, "not in the order of the plan"
        self._next_step += leases[0].steps

    def _check_backup(self, update, used, leases, missing):
        """All but B, then all at the end of an epoch; what was put off before comes at once."""
        epoch, plan = self._epoch(), self.plan
        left = self._slots.of_epoch[epoch] & ~self._used
        pieces = len(leases) + len(missing)
        assert pieces == min(plan.most_slots, left.bit_count())
        least = pieces if pieces == left.bit_count() else max(1, pieces - self.promise.backup)
        assert len(leases) == least, "it was applied too early or too late"
        put_off = sum(map(self._slots.of, missing))
        assert not put_off & (self._arrived | self._used)
        assert not self._put_off & ~(used | put_off), "what was put off did not come back at once"
        self._put_off = put_off
        self.seen["requeued"] += len(missing)
        done = self._slots.examples(self._slots.of_epoch[epoch] & self._used)
        steps, total = plan.steps_per_epoch, plan.examples
        assert update.step == epoch * steps + done * steps // total
        for holder, lease in list(self.standing.values()):
            assert self._slots.of(lease) & put_off
            self._give_up(holder)
        self._freed = 0  # what was put off is all that can be free

    def _check_epoch(self, update, used):
        epoch = update.epoch
        assert not used & ~self._slots.of_epoch[epoch], "two epochs in one update"
        assert update.ends_epoch == (not self._slots.of_epoch[epoch] & ~self._used)
        self.seen["ends", epoch] += update.ends_epoch

    def check_end(self):
        assert self.finished
        assert not self.standing and not self.waiting
        assert all(self.seen["ends", epoch] == 1 for epoch in range(self.plan.epochs))
        trees = CountedTree.made - self._trees_before
        assert trees <= self.promise.window(self._most_workers)
        if self.promise.is_bsp:
            expected = plain_sgd(replace(self.toy, policy=None))
            assert self.server.weights.tobytes() == expected.tobytes()
            self.seen["as bsp"] += 1
        if self.promise.is_local:
            assert self.server.weights.tobytes() == plain_local(self.toy).tobytes()

    def _epoch(self):
        """The first epoch that is not used up."""
        epochs = self._slots.of_epoch.items()
        return next((epoch for epoch, slots in epochs if slots & ~self._used), -1)

    def _taken(self):
        """What is leased out, or has come."""
        return self._arrived | sum(self._slots.of(lease) for _, lease in self.standing.values())
