"""Whether updates are ones that the plan and the policy of a run can have made, one after another.

What it takes as given is only that the plan and the policy are those of the run. Of an update that
passes it is certain that it belongs to the plan, and that none of its slots was used before. Who
computed a slot cannot be certain: any worker of the fleet gives the same gradient.
"""

from __future__ import annotations

from dataclasses import replace

from distsgd.core.messages import Lease, Piece, Update
from distsgd.core.plan import Plan
from distsgd.core.server.consistency.base import Policy, Range
from distsgd.core.server.position import Ledger

__all__ = ["UpdateCheck"]

_FLEETS_TRIED = 256
"""Sizes of a fleet that a minibatch may have been cut for, beside the number of its pieces."""


class UpdateCheck:
    """Takes the updates of a run in their order.

    Its memory does not grow with the run: it keeps what is not yet whole.

    Args:
        plan: the slots of each step.
        policy: which slots make an update.
        ledger: what has been applied before the first; added to from here on.
        workers: of the fleet there; 0 for one process.

    Attributes:
        ledger: what has been applied.
        largest_age: of any contribution, in updates.
    """

    def __init__(self, plan: Plan, policy: Policy, ledger: Ledger, workers: int) -> None:
        self._plan, self._policy, self.ledger = plan, policy, ledger
        self.largest_age = 0
        self._workers = max(1, workers)
        self._oldest = 0  # no later update reads an older version
        self._first_serials: dict[int, int] = {}
        self._put_off: tuple[Piece, ...] | None = None  # by the update before, if that is known
        self._cuts: dict[int, frozenset[Range]] = {}
        self._used = ledger.open_examples(plan)  # epoch -> examples, of those that are not whole

    @property
    def workers(self) -> int:
        """The most workers since the run started or resumed."""
        return self._workers

    def resized(self, workers: int) -> None:
        """Change the number of workers; leases of the previous ones may still be answered."""
        self._workers = max(self._workers, workers)

    def resumed(self, version: int, epochs: int, workers: int) -> None:
        """The run was resumed by new workers, which hold no earlier lease.

        Raises:
            ValueError: it does not stand there.
        """
        if version != self.ledger.version:
            raise ValueError(f"it resumes from version {version}, not {self.ledger.version}")
        if epochs < self._plan.epochs:
            raise ValueError(f"it resumes to {epochs} epochs, fewer than {self._plan.epochs}")
        self._plan = replace(self._plan, epochs=epochs)
        self._workers, self._oldest, self._put_off = max(1, workers), version, None
        self._first_serials = self.ledger.serials

    def add(self, update: Update) -> None:
        """The next update.

        Raises:
            ValueError: it cannot be the next.
        """
        number = self.ledger.version + 1
        if update.version != number:
            raise ValueError(f"it makes version {update.version}, not {number}")
        if not update.contributions:
            raise ValueError("nothing contributes to it")
        if not 0 <= update.step < self._plan.total_steps:
            raise ValueError(f"the plan has no step {update.step}")
        if self._policy.requeues:
            self._check_mixed(update)
        else:
            self._check_minibatch(update)
        for worker, lease in update.contributions:
            self._check_contribution(number, worker, lease)
        self._count(update)
        self.ledger.add(self._plan, update)

    def _check_minibatch(self, update: Update) -> None:
        """All slots of one step, or of one round of local steps, each once."""
        plan, policy, step = self._plan, self._policy, update.step
        if update.requeued:
            raise ValueError(f"{policy.name} puts nothing off")
        if policy.in_order:
            if step != self.ledger.whole:
                raise ValueError(f"it is of step {step}, and step {self.ledger.whole} comes next")
        elif self.ledger.has(step, 0):
            raise ValueError(f"step {step} was applied before")
        elif step >= max(self.ledger.next, self._steps_made + policy.window(self._workers)):
            raise ValueError(f"it is of step {step}, which was not open yet")
        ranges = tuple((lease.first, lease.last) for _, lease in update.contributions)
        if not self._is_cut(plan.slots(step), ranges):
            raise ValueError(
                f"its pieces are not those of step {step}, each once: {_short(ranges)}"
            )
        steps = policy.steps(plan.steps_per_epoch - step % plan.steps_per_epoch)
        replicas = len(ranges) if policy.local else 0
        for _, lease in update.contributions:
            if (lease.step, lease.steps, lease.replicas) != (step, steps, replicas):
                raise ValueError(
                    f"it takes {lease.steps} steps from step {lease.step} on in {lease.replicas} "
                    f"replicas, not {steps} from step {step} on in {replicas}"
                )

    @property
    def _steps_made(self) -> int:
        return self.ledger.version + self.ledger.behind

    def _is_cut(self, slots: int, ranges: tuple[Range, ...]) -> bool:
        """Whether the policy cuts a minibatch so, for some number of workers.

        Workers of one node may have theirs in one piece.
        """
        if len(ranges) > slots:
            return False
        most = min(self._workers, _FLEETS_TRIED)
        cuts = (
            tuple(self._policy.pieces(slots, workers))
            for workers in (len(ranges), *range(1, most + 1))
        )
        if not self._policy.divides:
            return ranges in cuts
        return any(cut == ranges or _is_joined(cut, ranges) for cut in cuts)

    def _check_mixed(self, update: Update) -> None:
        """What was put off, then slots that follow in the epoch; as many as a minibatch has."""
        plan = self._plan
        epoch = plan.epoch_of(self.ledger.whole)
        used = self._used.get(epoch, 0)
        step = epoch * plan.steps_per_epoch + used * plan.steps_per_epoch // plan.examples
        if update.step != step:
            raise ValueError(f"it is of step {update.step}, and step {step} comes next")
        if len(update.contributions) + len(update.requeued) > plan.most_slots:
            raise ValueError(f"it has more pieces than the {plan.most_slots} of a minibatch")
        pieces = _pieces(update)
        examples = sum(self._examples_of(epoch, piece) for piece in pieces)
        if len(set(pieces)) < len(pieces):
            raise ValueError("it has a piece twice")
        if self._put_off is not None and pieces[: len(self._put_off)] != self._put_off:
            raise ValueError("what the update before put off does not come first")
        last = used + examples == plan.examples
        if not last and len(pieces) < plan.most_slots:
            raise ValueError(f"it has {len(pieces)} pieces, fewer than the plan")
        if not self._policy.enough(len(update.contributions), len(pieces), last):
            raise ValueError(f"it puts off {len(update.requeued)} of {len(pieces)} pieces")
        for _, lease in update.contributions:
            if lease.steps != 1 or lease.replicas:
                raise ValueError(f"{self._policy.name} has no local steps")
        self._put_off = tuple((step, first, last) for _, step, first, last in update.requeued)

    def _examples_of(self, epoch: int, piece: Piece) -> int:
        """Examples of a piece, which must be one of this epoch that was not applied before."""
        plan, (step, first, last) = self._plan, piece
        if not 0 <= step < plan.total_steps or plan.epoch_of(step) != epoch:
            raise ValueError(f"it has slots of step {step}, which is not in epoch {epoch + 1}")
        slots = plan.slots(step)
        if slots not in self._cuts:
            self._cuts[slots] = frozenset(self._policy.pieces(slots, 0))
        if (first, last) not in self._cuts[slots]:
            raise ValueError(f"the plan has no piece of slots {first} to {last} of step {step}")
        if any(self.ledger.has(step, slot) for slot in range(first, last)):
            raise ValueError(f"slot {first} of step {step} was applied before")
        return plan.slot(step, last - 1)[1] - plan.slot(step, first)[0]

    def _check_contribution(self, number: int, worker: int, lease: Lease) -> None:
        if not 0 <= worker < self._workers:
            raise ValueError(f"there was no worker {worker} in the fleet of {self._workers}")
        age, bound = number - 1 - lease.version, self._policy.max_staleness
        if age < 0 or (bound is not None and age > bound):
            raise ValueError(f"a gradient is {age} updates old")
        if lease.version < self._oldest:
            raise ValueError(
                f"a gradient was computed at version {lease.version}, before the run was "
                f"resumed at version {self._oldest}"
            )
        self.largest_age = max(self.largest_age, age)
        if lease.serial < self._first_serials.get(worker, 0):
            raise ValueError(f"worker {worker} gave an answer from before the run was resumed")

    def _count(self, update: Update) -> None:
        """Count the examples of the epochs that are not whole."""
        plan = self._plan
        for _, lease in update.contributions:
            for step, first, last in lease.slots(plan):
                epoch = plan.epoch_of(step)
                examples = plan.slot(step, last - 1)[1] - plan.slot(step, first)[0]
                found = self._used.get(epoch, 0) + examples
                self._used[epoch] = found
                if found == plan.examples:
                    del self._used[epoch]


def _pieces(update: Update) -> tuple[Piece, ...]:
    """What came and what was put off, in the order of their places in the reduction tree."""
    put_off = {place: (step, first, last) for place, step, first, last in update.requeued}
    came = iter([lease.piece for _, lease in update.contributions])
    pieces: list[Piece] = []
    place = 0
    for _ in range(len(update.contributions) + len(update.requeued)):
        piece = put_off.pop(place) if place in put_off else next(came, None)
        if piece is None:
            break
        if piece[2] <= piece[1]:
            raise ValueError("it has a piece without slots")
        pieces.append(piece)
        place += piece[2] - piece[1]
    if len(pieces) < len(update.contributions) + len(update.requeued):
        raise ValueError("what it puts off has no place in its minibatch")
    return tuple(pieces)


def _is_joined(cut: tuple[Range, ...], ranges: tuple[Range, ...]) -> bool:
    """Whether ranges are those of a cut, some that follow each other made one."""
    rest = iter(cut)
    for first, last in ranges:
        begins, ends = next(rest, (-1, -1))
        while ends < last and (more := next(rest, None)) is not None:
            ends = more[1]
        if (begins, ends) != (first, last):
            return False
    return next(rest, None) is None


def _short(ranges: tuple[Range, ...]) -> str:
    shown = ", ".join(f"{first} to {last}" for first, last in ranges[:4])
    return shown + (", ..." if len(ranges) > 4 else "")
