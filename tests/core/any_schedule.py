"""A crew of workers that does anything at any time, and what each policy promises about it.

`drive` plays one schedule against a parameter server. A `Crew` keeps its own account of who holds
what and what was used, in terms of the promises below and not of the server's code, and checks
every decision against it as it is made. A `Reference` computes every W anew.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import fsum

import numpy as np
from toy_fleet import DECAY, START, Toy, shares_of, toy_plan

from distsgd.core.consistency import make_policy
from distsgd.core.messages import LIFE, Applied, Dismiss, Dropped, Grant, Lease
from distsgd.core.optimizers import make_optimizer
from distsgd.core.reduction_tree import TreeSum


class CountedTree(TreeSum):
    """Counts how many places to sum in have been made."""

    made = 0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        CountedTree.made += 1


@dataclass(frozen=True)
class Promise:
    """What a policy says of itself.

    Attributes:
        staleness: the most updates that a gradient is old, and the most minibatches that a piece
            is ahead of the oldest that is not applied; None if there is no bound.
        window: how many minibatches may be open, given the number of workers.
        pieces: into how many pieces a minibatch of so many slots is cut for so many workers.
        local_steps: steps of the plan in one update.
        backup: pieces of a minibatch that are not waited for.
    """

    staleness: int | None = 0
    window: Callable[[int], int] = lambda workers: 1
    pieces: Callable[[int, int], int] = lambda slots, workers: min(slots, max(1, workers))
    local_steps: int = 1
    backup: int = 0

    @property
    def is_bsp(self):
        """Whether W must have the bits of `bsp`."""
        return (self.staleness, self.local_steps, self.backup) == (0, 1, 0)

    @property
    def is_local(self):
        return self.local_steps > 1


# The draws of a policy: what to make it of, and what it then promises. `slots` is the n of a plan.


def any_bsp(random, slots):
    return {}, Promise()


def any_ssp(random, slots):
    bound = random.randint(0, 5)
    return {"staleness": bound}, Promise(staleness=bound, window=lambda workers: bound + 1)


def any_asp(random, slots):
    return {}, Promise(None, window=lambda workers: max(1, workers), pieces=lambda n, workers: 1)


def any_backup(random, slots):
    backup = random.randint(1, slots - 1)
    return {"backup": backup}, Promise(pieces=lambda n, workers: n, backup=backup)


def any_local(random, slots):
    steps, replicas = random.randint(1, 4), random.randint(1, 6)
    promise = Promise(pieces=lambda n, workers: min(n, replicas), local_steps=steps)
    return {"local_steps": steps, "replicas": replicas}, promise


PROMISES = {
    "bsp": any_bsp,
    "ssp": any_ssp,
    "asp": any_asp,
    "backup": any_backup,
    "local": any_local,
}


def any_crew(name, random):
    """A crew for a small plan of any shape, with the policy called ``name``."""
    slots, slot_size = random.randint(2 if name == "backup" else 1, 5), random.randint(1, 3)
    batch_size = slots * slot_size - random.randrange(slot_size)
    examples = batch_size * random.randint(1, 2) + random.randint(1, batch_size)
    numbers, promise = PROMISES[name](random, slots)
    optimizer = "sgd" if promise.is_local else random.choice(("sgd", "momentum", "adam"))
    plan = toy_plan(examples, batch_size, slot_size, epochs=2)
    return Crew(Toy(plan, optimizer, make_policy(name, **numbers)), promise)


class Reference:
    """Every version of W by its definition, from what went into each update."""

    def __init__(self, toy):
        self.toy, self.versions = toy, [START]
        self._optimizer = make_optimizer(toy.optimizer, START, 0.9)

    def update(self, step, examples, leases, missing=()):
        """One more update; ``missing`` are the places of leaves that have not arrived."""
        leaves = [leaf for lease in leases for leaf in self._leaves(lease)]
        for place in sorted(missing):
            leaves.insert(place, None)
        mean = add_in_pairs(leaves) * np.float32(1 / examples)
        weights = self.versions[-1].copy()
        if leases[0].shares:
            weights -= mean
        else:
            rate, number = self.toy.schedule().at(step), len(self.versions)
            self._optimizer.step(weights, mean + DECAY * weights, rate, number)
        self.versions.append(weights)

    def _leaves(self, lease):
        weights = self.versions[lease.version]
        if lease.shares:
            return self.toy.answer(lease, weights).gradients
        slots = range(lease.first, lease.last)
        return [self.toy.gradient(weights, lease.step, slot) for slot in slots]


def piece_of(lease):
    return lease.step, lease.first, lease.last


def add_in_pairs(leaves):
    """The reduction tree: neighbours are added, then the sums of neighbours, and so on."""
    while len(leaves) > 1:
        leaves = [added(*leaves[at : at + 2]) for at in range(0, len(leaves), 2)]
    return leaves[0]


def added(left, right=None):
    if left is None or right is None:
        return right if left is None else left
    return left + right


@cache
def plain_sgd(toy):
    """The last W of serial minibatch SGD, without any server."""
    reference, plan = Reference(toy), toy.plan
    for step in range(plan.total_steps):
        lease = Lease(step, 0, plan.slots(step), step)
        reference.update(step, plan.batch_examples(step), [lease])
    return reference.versions[-1]


@cache
def plain_local(toy):
    """The last W of serial rounds of local steps, without any server."""
    reference, plan, policy = Reference(toy), toy.plan, toy.policy
    step = 0
    while step < plan.total_steps:
        left = plan.steps_per_epoch - step % plan.steps_per_epoch
        steps = min(policy.every, left)
        if 2 * (left - steps) < policy.every:
            steps = left
        replicas = min(policy.replicas, plan.slots(step))
        leases = [
            Lease(step, replica, replica + 1, len(reference.versions) - 1, steps, replicas)
            for replica in range(replicas)
        ]
        examples = sum(map(plan.batch_examples, range(step, step + steps)))
        reference.update(step, examples, leases)
        step += steps
    return reference.versions[-1]


class Crew:
    """Workers around a server; sets of slots are kept as the bits of whole numbers.

    Attributes:
        workers: those that live.
        waiting: those that have pulled and have not been answered, first come first.
        standing: piece -> worker and lease, of all that are leased out now.
        given_up: leases that stand no more, but whose answers may still come.
        sent: leases that have been answered, with who did.
        seen: what has happened, and how often.
        log: what has been done, for the report of a failure.
    """

    def __init__(self, toy, promise):
        self.toy, self.plan, self.promise, self.server = toy, toy.plan, promise, toy.server()
        self.reference = Reference(toy)
        self.workers, self.waiting, self.standing = [], {}, {}
        self.given_up, self.sent, self.log, self.seen = [], [], [], Counter()
        self._number_slots()
        self._pushed = {}  # piece -> worker, lease and losses, until it is applied
        self._arrived = self._used = self._put_off = self._freed = 0
        self._open = {}  # first step -> workers that it was cut for
        self._next_step = self._most_workers = 0
        self._serials = Counter()  # worker -> serial of its next lease
        self._trees_before = CountedTree.made

    def _number_slots(self):
        steps = range(self.plan.total_steps)
        slots = [(step, slot) for step in steps for slot in range(self.plan.slots(step))]
        self._bits = {slot: 1 << number for number, slot in enumerate(slots)}
        self._of_step, self._of_epoch = defaultdict(int), defaultdict(int)
        for (step, _), bit in self._bits.items():
            self._of_step[step] |= bit
            self._of_epoch[self.plan.epoch_of(step)] |= bit
        self._all, self._masks = (1 << len(slots)) - 1, {}

    # What can happen

    def join(self, worker):
        """Also of one that is here already, or was lost before."""
        self.log.append(("join", worker))
        if worker not in self.workers:
            self.workers.append(worker)
        self._carry_out(self.server.joined(worker))

    def lose(self, worker):
        self.log.append(("lose", worker))
        if worker in self.workers:
            self.workers.remove(worker)
            self._serials[worker] = (self._serials[worker] // LIFE + 1) * LIFE
        self.waiting.pop(worker, None)
        self._give_up(worker)
        self._carry_out(self.server.lost(worker))

    def pull(self, worker):
        """Also while waiting, while holding a lease, and without having joined."""
        self.log.append(("pull", worker))
        if worker not in self.workers:
            self.workers.append(worker)
        self._give_up(worker)
        self.waiting.setdefault(worker)
        self._carry_out(self.server.pull(worker))
        assert worker not in self.waiting or self.standing, "it waits for nobody"

    def push(self, worker, lease):
        """An answer comes, wanted or not."""
        self.log.append(("push", worker, lease.as_tuple()))
        piece = piece_of(lease)
        push = self.toy.answer(lease, self.reference.versions[lease.version])
        self.sent.append((worker, lease))
        if self.standing.get(piece, (None, None))[1] == lease:
            holder, _ = self.standing.pop(piece)
            if holder != worker:
                self.given_up.append((holder, lease))
            self._pushed[piece] = worker, lease, push.losses
            self._arrived |= self._mask(lease)
            self._serials[worker] += 1
            decisions = self.server.push(worker, push)
            assert not any(isinstance(decision, Dropped) for decision in decisions)
        else:
            self.seen["dropped"] += 1
            decisions = self.server.push(worker, push)
            assert decisions == [Dropped(worker, lease)], "a push was used that nobody waits for"
        self._carry_out(decisions)

    def answer(self, number):
        """The holder of a lease that stands answers it."""
        worker, lease = list(self.standing.values())[number]
        self.push(worker, lease)
        return worker

    @property
    def finished(self):
        return self._used == self._all

    # Checks

    def _give_up(self, worker):
        for piece, (holder, lease) in list(self.standing.items()):
            if holder == worker:
                del self.standing[piece]
                self.given_up.append((holder, lease))
                self._freed |= self._mask(lease)

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
        assert len(self.standing) <= len(self.workers)
        if self.waiting:
            assert not self.finished, "it waits after the end"
            assert self.standing, "all wait, nobody works"
            self._check_nothing_is_free()

    def _check_nothing_is_free(self):
        taken = self._taken()
        if self.promise.backup:
            left = self._of_epoch[self._epoch()] & ~self._used
            assert taken.bit_count() == min(self.plan.most_slots, left.bit_count())
            return
        opened = sum(map(self._round, self._open))
        assert not opened & ~taken, "a piece lies free while a worker waits"
        full = len(self._open) >= self.promise.window(len(self.workers))
        assert full or opened | self._used == self._all, "a minibatch could be opened"

    def _check_grant(self, worker, lease):
        """Only who asked is answered; the version is the last; the piece is nobody else's."""
        assert worker in self.workers
        assert worker == next(iter(self.waiting), None), "first come, first served"
        del self.waiting[worker]
        assert all(worker != holder for holder, _ in self.standing.values())
        assert lease.version == self.server.version
        assert lease.serial == self._serials[worker]
        assert not self._mask(lease) & (self._taken() | self._used)
        self._check_opened(lease)
        freed = self._freed & self._round(lease.step)
        assert not freed or self._mask(lease) & freed, "what was given up comes first"
        self._freed &= ~self._mask(lease)
        self.standing[piece_of(lease)] = worker, lease

    def _check_opened(self, lease):
        if self.promise.backup:
            assert self.plan.epoch_of(lease.step) == self._epoch(), "it is from another epoch"
            return
        if self.promise.staleness is not None:
            assert 0 <= lease.step - self._next_step <= self.promise.staleness, "too far ahead"
        older = sum(self._round(step) for step in self._open if step < lease.step)
        assert not older & ~self._taken(), "the oldest minibatch comes first"
        if lease.step not in self._open:
            self._open[lease.step] = len(self.workers)
            assert len(self._open) <= self.promise.window(len(self.workers)), "too many open"

    def _check_applied(self, update):
        leases = [lease for _, lease in update.contributions]
        used = sum(map(self._mask, leases))
        assert used == self._union(leases), "a slot is twice in an update"
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
        slots = [slot for _, lease in update.contributions for slot in self._slots(lease)]
        bounds = [self.plan.slot(*slot) for slot in slots]
        assert update.examples == sum(high - low for low, high in bounds)
        assert update.examples == sum(loss.examples for loss in losses)
        assert update.correct == sum(loss.correct for loss in losses)
        assert update.loss == fsum(loss.loss for loss in losses) / update.examples
        assert update.learning_rate == self.toy.schedule().at(update.step)

    def _check_staleness(self, update, leases):
        now = len(self.reference.versions) - 1
        staleness = [now - lease.version for lease in leases]
        assert update.staleness == staleness
        assert min(staleness) >= 0
        if self.promise.staleness is not None:
            assert max(staleness) <= self.promise.staleness, "too stale"
        self.seen["staleness", max(staleness)] += 1

    def _check_whole(self, update, used, leases):
        """All of one minibatch, or of one round; in the order of the plan unless asynchronous."""
        assert not update.requeued
        assert used == self._round(update.step)
        workers = self._open.pop(update.step)
        assert len(leases) == self.promise.pieces(self.plan.slots(update.step), workers)
        if self.promise.staleness is None:
            return
        assert update.step == self._next_step, "not in the order of the plan"
        self._next_step += leases[0].steps

    def _check_backup(self, update, used, leases, missing):
        """All but B, then all at the end of an epoch; what was put off before comes at once."""
        epoch, plan = self._epoch(), self.plan
        left = self._of_epoch[epoch] & ~self._used
        pieces = len(leases) + len(missing)
        assert pieces == min(plan.most_slots, left.bit_count())
        least = pieces if pieces == left.bit_count() else max(1, pieces - self.promise.backup)
        assert len(leases) == least, "it was applied too early or too late"
        put_off = sum(map(self._mask, missing))
        assert not put_off & (self._arrived | self._used)
        assert not self._put_off & ~(used | put_off), "what was put off did not come back at once"
        self._put_off = put_off
        self.seen["requeued"] += len(missing)
        steps, total = plan.steps_per_epoch, plan.examples
        assert update.step == epoch * steps + self._examples(~left, epoch) * steps // total
        for holder, lease in list(self.standing.values()):
            assert self._mask(lease) & put_off
            self._give_up(holder)
        self._freed = 0  # what was put off is all that can be free

    def _check_epoch(self, update, used):
        epoch = update.epoch
        assert not used & ~self._of_epoch[epoch], "two epochs in one update"
        assert update.ends_epoch == (not self._of_epoch[epoch] & ~self._used)
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

    # Slots

    def _epoch(self):
        """The first epoch that is not used up."""
        return next((e for e, mask in self._of_epoch.items() if mask & ~self._used), -1)

    def _slots(self, lease):
        return [(step, slot) for step, part in shares_of(self.plan, lease) for slot in part]

    def _mask(self, lease):
        piece = piece_of(lease)
        if piece not in self._masks:
            self._masks[piece] = sum(self._bits[slot] for slot in self._slots(lease))
        return self._masks[piece]

    def _taken(self):
        """What is leased out, or has come."""
        return self._arrived | sum(self._mask(lease) for _, lease in self.standing.values())

    def _union(self, leases):
        mask = 0
        for lease in leases:
            mask |= self._mask(lease)
        return mask

    def _round(self, step):
        """The slots of the minibatch, or minibatches, of the update that starts at a step."""
        end = (self.plan.epoch_of(step) + 1) * self.plan.steps_per_epoch
        last = min(step + self.promise.local_steps, end)
        if 2 * (end - last) < self.promise.local_steps:
            last = end
        return sum(self._of_step[number] for number in range(step, last))

    def _examples(self, mask, epoch):
        bounds = (self.plan.slot(*at) for at, bit in self._bits.items()
                  if bit & mask & self._of_epoch[epoch])  # fmt: skip
        return sum(high - low for low, high in bounds)


# Schedules

NAMES = 7
QUICK = {
    "the first": lambda random, choices: 0,
    "the last": lambda random, choices: choices - 1,
    "anyone": lambda random, choices: random.randrange(choices),
}


def drive(name, random):
    """Play one schedule to its end; returns the crew.

    Args:
        name: the policy.
        random: all that is left to chance: `random.Random(seed)` plays a seed again.
    """
    crew = any_crew(name, random)
    try:
        play(crew, random)
        finish_alone(crew, random)
        crew.check_end()
    except Exception as error:
        error.add_note(f"{crew.toy}\n" + "\n".join(map(str, crew.log)))
        raise
    return crew


def play(crew, random):
    """Workers join, and then it goes on in turn, or not."""
    quick = QUICK[random.choice(tuple(QUICK))]
    unruly = random.choice((0.02, 0.1, 0.3, 0.6))
    for worker in range(random.randint(0, NAMES - 1)):
        crew.join(worker)
    for _ in range(random.randrange(60)):
        if crew.finished:
            return
        if random.random() < unruly:
            random.choice(UNRULY)(crew, random)
        else:
            go_on(crew, random, quick)


def go_on(crew, random, quick):
    """An idle worker pulls, or one answers and pulls."""
    busy = {*crew.waiting, *(holder for holder, _ in crew.standing.values())}
    idle = [worker for worker in crew.workers if worker not in busy]
    if idle and random.random() < 0.8:
        crew.pull(random.choice(idle))
    elif crew.standing:
        worker = crew.answer(quick(random, len(crew.standing)))
        if random.random() < 0.8:
            crew.pull(worker)


def someone_joins(crew, random):
    crew.join(random.randrange(NAMES))


def someone_is_lost(crew, random):
    """Also one that was never here."""
    crew.lose(random.randrange(NAMES))


def someone_pulls(crew, random):
    crew.pull(random.randrange(NAMES))


def a_late_answer_comes(crew, random):
    if crew.given_up:
        crew.push(*crew.given_up.pop(random.randrange(len(crew.given_up))))


def an_answer_comes_again(crew, random):
    if crew.sent:
        crew.push(*random.choice(crew.sent[-6:]))


UNRULY = (
    someone_joins,
    someone_is_lost,
    someone_pulls,
    a_late_answer_comes,
    an_answer_comes_again,
)


def finish_alone(crew, random):
    """All but one are lost; the last finishes, and what comes after the end is not used."""
    if not crew.workers:
        crew.join(random.randrange(NAMES))
    survivor, *others = crew.workers
    for worker in others:
        crew.lose(worker)
    for _ in range(crew.toy.all_slots().total() + 1):
        if crew.standing:
            crew.push(survivor, next(iter(crew.standing.values()))[1])
        crew.pull(survivor)
        if crew.finished:
            break
    for worker, lease in [*crew.given_up, *crew.sent[-3:]]:
        crew.push(worker, lease)
