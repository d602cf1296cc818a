"""Where a run stands: which slots of its plan have been applied.

The minibatches of a run in the order in which they are opened, and what was put off.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from distsgd.core.messages import Piece, Update, next_incarnation
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import shares_by_size
from distsgd.core.server.consistency import Policy
from distsgd.core.server.open_minibatch import OpenMinibatch

__all__ = ["Ledger", "Position", "WorkQueue"]


_MOST = 1 << 62
_MOST_OPEN = 10_000
"""Minibatches that may be open at once: no fleet has more workers."""


@dataclass(frozen=True)
class Position:
    """What a server needs to know of earlier updates in order to continue.

    Attributes:
        version: how many there were.
        step: the first step of the plan of which nothing has been handed out for good.
        holes: what has not been applied of the steps before, as pieces (step, first, last).
        examples: epoch -> examples applied, of epochs in progress.
        serials: worker -> serial of its next lease (`Lease.serial`); 0 for others.
        examples_seen: examples applied in all epochs.
    """

    version: int
    step: int
    holes: tuple[Piece, ...] = ()
    examples: dict[int, int] = field(default_factory=dict)
    serials: dict[int, int] = field(default_factory=dict)
    examples_seen: int = 0

    @classmethod
    def of_step(cls, plan: Plan, version: int) -> Position:
        """The ledger after a number of updates, each of one step of the plan, in order."""
        examples = {}
        if 0 < version < plan.total_steps:
            examples[plan.epoch_of(version)] = plan.minibatch(version)[0]
        epochs, steps = divmod(min(version, plan.total_steps), plan.steps_per_epoch)
        seen = epochs * plan.examples + steps * plan.batch_size
        return cls(version, version, (), examples, examples_seen=seen)


class Ledger:
    """Which slots have been applied, update after update.

    It keeps no more than what is not yet whole, so it is small however long the run is, and goes
    into checkpoints.

    Attributes:
        version: updates so far.
    """

    def __init__(self) -> None:
        self.version = 0
        self._whole = 0  # every step before this one has been applied whole
        self._begun: dict[int, set[int]] = {}  # of the steps from there on: slots applied
        self._next = 0  # one past the last step of which anything has been applied
        self._serials: dict[int, int] = {}
        self._from = (0, 0)  # the version and the step at which this plan began

    @property
    def is_whole(self) -> bool:
        """Whether nothing of a step has been applied that comes after one that is not whole."""
        return not self._begun

    def in_part(self, plan: Plan) -> bool:
        """Whether some slots of a step have been applied, and others not."""
        return any(len(slots) < plan.slots(step) for step, slots in self._begun.items())

    def replanned(self, before: Plan, after: Plan) -> Ledger:
        """The same at the end of an epoch, for another plan, which begins there.

        Raises:
            ValueError: it is not the end of an epoch.
        """
        epochs, rest = divmod(self._whole, before.steps_per_epoch)
        if rest or self._begun:
            raise ValueError("it is not the end of an epoch")
        ledger = Ledger()
        ledger.version, ledger._serials = self.version, dict(self._serials)
        ledger._whole = ledger._next = epochs * after.steps_per_epoch
        ledger._from = self.version, ledger._whole
        return ledger

    @property
    def behind(self) -> int:
        """How many fewer updates there were than steps, before this plan began."""
        return self._from[1] - self._from[0]

    @property
    def whole(self) -> int:
        """Every step of the plan before this one has been applied whole."""
        return self._whole

    @property
    def next(self) -> int:
        """One past the last step of which anything has been applied."""
        return self._next

    @property
    def serials(self) -> dict[int, int]:
        """Worker -> the least serial of a lease that it may get after a restart; a copy."""
        return dict(self._serials)

    def has(self, step: int, slot: int) -> bool:
        """Whether a slot has been applied."""
        return step < self._whole or slot in self._begun.get(step, ())

    def add(self, plan: Plan, update: Update) -> None:
        """The next update of the run."""
        self.version += 1
        here, slots = self._whole, 0
        for worker, lease in update.contributions:
            if lease.serial >= self._serials.get(worker, 0):
                self._serials[worker] = next_incarnation(lease.serial)
            slots += lease.last - lease.first if lease.step == here and not lease.replicas else 0
        if slots == plan.slots(here) and here not in self._begun:  # as nearly always in `bsp`
            self._whole += 1
            self._next = max(self._next, self._whole)
        else:
            for _, lease in update.contributions:
                for step, first, last in lease.slots(plan):
                    self._begun.setdefault(step, set()).update(range(first, last))
                    self._next = max(self._next, step + 1)
        while self._begun and len(self._begun.get(self._whole, ())) == plan.slots(self._whole):
            del self._begun[self._whole]
            self._whole += 1

    def position(self, plan: Plan, policy: Policy) -> Position:
        """What a server needs to know to continue from here."""
        step = self._next
        if policy.requeues:  # the slots of an epoch are handed out one by one
            step = -(-step // plan.steps_per_epoch) * plan.steps_per_epoch
        holes = tuple(self._holes(plan, policy, step))
        return Position(
            self.version, step, holes, self.open_examples(plan), dict(self._serials),
            self.examples(plan),
        )  # fmt: skip

    def _holes(self, plan: Plan, policy: Policy, before: int) -> Iterator[Piece]:
        for step in range(self._whole, before):
            missing = set(range(plan.slots(step))) - self._begun.get(step, set())
            if not missing:
                continue
            if policy.requeues:
                yield from ((step, slot, slot + 1) for slot in sorted(missing))
            else:
                yield (step, 0, plan.slots(step))

    def open_examples(self, plan: Plan) -> dict[int, int]:
        """Epoch -> examples applied, of epochs in progress."""
        epoch, steps = divmod(self._whole, plan.steps_per_epoch)
        found: Counter[int] = Counter()
        if steps:
            found[epoch] += plan.minibatch(self._whole - 1)[1]
        for step, slots in self._begun.items():
            for slot in slots:
                low, high = plan.slot(step, slot)
                found[plan.epoch_of(step)] += high - low
        return dict(found)

    def examples(self, plan: Plan) -> int:
        """Examples applied in all epochs."""
        whole = self._whole // plan.steps_per_epoch
        return whole * plan.examples + sum(self.open_examples(plan).values())

    def check(self, plan: Plan) -> None:
        """See that this can be of a run with this plan, before anything is counted by it.

        Raises:
            ValueError: it cannot.
        """
        version, begins = self._from
        slots = (self._whole - begins) * plan.most_slots
        for step, begun in self._begun.items():
            if not (self._whole <= step < self._next and begun):
                raise ValueError(f"step {step} is not open, but steps before and after it are")
            if min(begun) < 0 or max(begun) >= plan.slots(step):
                raise ValueError(f"the plan has no slot {max(begun)} of step {step}")
            slots += len(begun)
        if not self._whole <= self._next <= plan.total_steps:
            raise ValueError(f"the plan has no step {self._next}")
        if self._next - self._whole > len(self._begun) + _MOST_OPEN:
            raise ValueError("more steps were skipped than can be open at once")
        if begins > self._whole or not bool(slots) <= self.version - version <= slots:
            raise ValueError(f"{self.version} updates do not make {slots} slots")

    def applied(self, plan: Plan, first: int = 0) -> Iterator[tuple[int, int]]:
        """(step, slot) of all that have been applied, from a step on."""
        for step in range(first, self._whole):
            yield from ((step, slot) for slot in range(plan.slots(step)))
        for step, slots in sorted(self._begun.items()):
            yield from ((step, slot) for slot in sorted(slots))

    def to_json(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        content = {
            "version": self.version,
            "whole": self._whole,
            "next": self._next,
            "begun": [[step, *sorted(slots)] for step, slots in sorted(self._begun.items())],
            "serials": [list(pair) for pair in sorted(self._serials.items())],
        }
        return content if self._from == (0, 0) else {**content, "from": list(self._from)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Ledger:
        """What `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is not that.
        """
        ledger = cls()
        ledger.version, ledger._whole = _count(content["version"]), _count(content["whole"])
        ledger._next = _count(content["next"])
        ledger._begun = {_count(step): set(map(_count, slots)) for step, *slots in content["begun"]}
        ledger._serials = {_count(worker): _count(serial) for worker, serial in content["serials"]}
        version, step = content.get("from", (0, 0))
        ledger._from = _count(version), _count(step)
        return ledger


def _count(value: object) -> int:
    """A whole number from 0 on that fits 62 bits, and nothing that only converts to one."""
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError(f"{str(value)[:20]} is no count")
    return value


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

    def open(self, workers: int, sizes: tuple[int, ...] = ()) -> OpenMinibatch:
        """The next minibatch.

        Args:
            workers: how many there are.
            sizes: cut it in proportion to these instead, if there are any.
        """
        if self._policy.requeues:
            return self._open_mixed()
        if self._holes:
            return self._cut(self._holes.popleft()[0], 1, workers, sizes)
        plan, step = self._plan, self._step
        left = plan.steps_per_epoch - step % plan.steps_per_epoch
        steps = self._policy.steps(left)
        self._step += steps
        return self._cut(step, steps, workers, sizes)

    def _cut(self, step: int, steps: int, workers: int, sizes: tuple[int, ...]) -> OpenMinibatch:
        slots = self._plan.slots(step)
        ranges = shares_by_size(slots, sizes) if sizes else self._policy.pieces(slots, workers)
        replicas = len(ranges) if self._policy.local else 0
        pieces = [(step, *part) for part in ranges]
        return OpenMinibatch(step, pieces, steps=steps, replicas=replicas)

    @property
    def next_whole(self) -> int | None:
        """The step that is opened next, if those after it follow; None where there are holes."""
        if self._policy.requeues or self._holes or self._step >= self._plan.total_steps:
            return None
        return self._step

    def move_to(self, step: int) -> None:
        """Steps before this one are a team's; those from there on are opened next."""
        self._step = step

    def reopen(self, steps: Iterable[int]) -> None:
        """Open these steps again, before those that follow."""
        self._holes.extend((step, 0, self._plan.slots(step)) for step in steps)

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
