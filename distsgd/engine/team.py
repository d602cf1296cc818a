"""A worker as the member of a team: updates of W in shared memory, without the server.

`distsgd.transport.team_memory` says what is in the memory, and in which order it is used.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter_ns

import numpy as np

from distsgd.core.arrays import finite
from distsgd.core.messages import Lease
from distsgd.core.model import SlotLoss
from distsgd.core.optim import Updater
from distsgd.core.reduction_tree import shares
from distsgd.core.server.team_steps import RangeSum, TeamSteps
from distsgd.engine.job import Job
from distsgd.engine.worker import Worker
from distsgd.transport.base import Membership
from distsgd.transport.team_memory import (
    APPLIED,
    ARRIVED,
    ASLEEP,
    BELL,
    HITS,
    LIMIT,
    NAP_SECONDS,
    ORDERED,
    REVOKED,
    SERIAL,
    STEP,
    TROUBLE,
    VERSION,
    WAITED,
    fence,
    sleeping_for,
)

__all__ = ["WORDS", "FailPoint", "Revoked", "TeamMember"]

_ALONE_NANOSECONDS, _CROWDED_NANOSECONDS = 1_000_000, 40_000
"""How long a member waits by yielding before it sleeps. Waking up from a sleep takes up to 0.2 ms
where a processor has to be woken for it, so a short sleep makes the others wait in turn. But where
anything else wants this processor, a member that only yields takes time from those it waits for."""

_GIVEN_AWAY_NANOSECONDS = 200_000
"""A yield that takes longer has let another process run."""

_LARGEST_LOSS = 1e300
_LINE_VALUES = 16

WORDS = (
    "begin", "sums", "record", "arrived", "waited-arrived", "half-applied", "range", "applied",
    "waited-applied", "bell",
)  # fmt: skip
"""Places between two words of the protocol, in their order, at which a test can end a member."""

FailPoint = Callable[[str, int], None]
"""Called at each of `WORDS`, with the version that is being made."""


class Revoked(Exception):
    """The team is over."""


class TeamMember:
    """Makes updates together with the other members, until the team is over.

    Args:
        job: what is trained.
        worker: computes the sums.
        place: in which team, and which member.
        connection: descriptor of the connection to the server.
        fail: for tests, see `FailPoint`.
    """

    def __init__(
        self,
        job: Job,
        worker: Worker,
        place: Membership,
        connection: int,
        fail: FailPoint | None = None,
    ) -> None:
        self._job, self._worker, self._fail = job, worker, fail
        self._memory, self._number = place.memory, place.number
        self._words, self._own = place.memory.words, place.memory.member(place.number)
        members = place.memory.shape.members
        self._others = [
            (number, place.memory.member(number)) for number in range(members)
            if number != place.number
        ]  # fmt: skip
        self._steps = TeamSteps(job.plan, job.policy, members)
        low, high = _range(job.parameters, members, place.number)
        self._part = slice(low, high)
        self._sum = RangeSum(high - low, job.dtype, job.plan.most_slots)
        self._updaters = [self._updater(copy) for copy in (0, 1)]
        self._poll = select.poll()
        self._waker = place.memory.waker(place.number)
        self._connection = connection
        for file in (self._waker, connection):
            self._poll.register(file, select.POLLIN)
        self._rung = -1
        self._waited = 0

    def _updater(self, copy: int) -> Updater:
        """Applies updates to this member's range of one of the copies of W."""
        job, part, memory = self._job, self._part, self._memory
        weights = memory.weights[copy, part]
        optimizer = job.update_rule(weights)
        for number, name in enumerate(sorted(optimizer.state)):
            optimizer.state[name] = memory.states[number, copy, part]
        return Updater(weights, decay=job.decay()[part], optimizer=optimizer, schedule=job.schedule)

    def run(self) -> int:
        """Work until the team is over; returns how many pieces were computed."""
        buffer = self._worker.computes_in(self._memory.sums[self._number])
        try:
            return self._work()
        finally:
            self._worker.computes_in(buffer)
            self._memory.close()

    def _work(self) -> int:
        words, steps, trace = self._words, self._steps, self._worker.trace
        version, step = words[VERSION], words[STEP]
        serial = first = words[self._own + SERIAL]
        try:
            while True:
                self._may_begin(version)
                lease = steps.lease(step, self._number, version, serial)
                trace.lap("wait")
                if lease is not None:
                    self._compute(lease)
                    serial += 1
                self._mark(ARRIVED, version + 1)
                if lease is not None:
                    self._worker.get_ready(lease)
                self._meet(ARRIVED, version + 1)
                trace.lap("wait")
                self._apply(step, version)
                self._mark(APPLIED, version + 1)
                trace.lap("update")
                self._meet(APPLIED, version + 1)
                version += 1
                step += steps.steps(step)
                if self._number == 0:
                    self._look_at_bell(version)
        except Revoked:
            return serial - first

    def _may_begin(self, version: int) -> None:
        """Wait until the next update is granted."""
        words = self._words
        if words[REVOKED]:
            raise Revoked
        if words[LIMIT] <= version:
            self._wait(_LIMIT_KIND, version + 1)
        if self._fail is not None:
            self._fail("begin", version + 1)

    def _compute(self, lease: Lease) -> None:
        """Put the sums of a piece into the memory, and write down its losses."""
        version = lease.version
        losses = self._worker.sums(lease, self._memory.weights[version & 1])
        if self._fail is not None:
            self._fail("sums", version + 1)
        self._record(losses, self._number, version)
        if self._fail is not None:
            self._fail("record", version + 1)

    def _record(self, losses: Sequence[SlotLoss], ring: int, version: int) -> None:
        """Write down the losses of this member for the update after a version."""
        row = version % self._memory.shape.records
        record, correct = self._memory.losses[ring, row], 0
        for place, loss in enumerate(losses):
            if not abs(loss.loss) < _LARGEST_LOSS:
                self._give_up(version + 1)
            record[place] = loss.loss
            correct += loss.correct
        record[len(losses) :] = 0
        self._memory.heads[ring, row, HITS] = correct

    def _apply(self, step: int, version: int) -> None:
        """Apply the update to this member's range, in the copy of W that nobody reads."""
        part, sums = self._part, self._memory.sums
        nodes, leaves = self._steps.nodes(step), self._steps.leaves(step)
        total = self._sum.total(nodes, leaves, lambda member, row: sums[member][row, part])
        if not finite(total):
            self._give_up(version + 1)
        old, new = self._updaters[version & 1], self._updaters[~version & 1]
        np.copyto(new.weights, old.weights)
        if self._fail is not None:
            self._fail("half-applied", version + 1)
        for name, array in new.optimizer.state.items():
            np.copyto(array, old.optimizer.state[name])
        new.version = version
        steps = self._steps.steps(step)
        examples = self._examples(step, steps)
        (new.average if self._job.policy.local else new.apply)(total, examples, step)
        if not finite(new.weights):
            self._give_up(version + 1)
        if self._fail is not None:
            self._fail("range", version + 1)

    def _examples(self, step: int, steps: int) -> int:
        plan = self._job.plan
        return plan.minibatch(step + steps - 1)[1] - plan.minibatch(step)[0]

    def _mark(self, kind: int, value: int) -> None:
        """Say how far this member is, and wake who has waited for it."""
        words = self._words
        if not ORDERED:
            fence()
        words[self._own + kind] = value
        fence()
        code = sleeping_for(kind, value)
        for number, other in self._others:
            if words[other + ASLEEP] == code and self._all(kind, value):
                self._memory.wake(number)
        if self._fail is not None:
            self._fail("arrived" if kind == ARRIVED else "applied", value)

    def _all(self, kind: int, value: int) -> bool:
        words = self._words
        return all(words[other + kind] >= value for _, other in self._others)

    def _meet(self, kind: int, value: int) -> None:
        """Wait until all are there."""
        words = self._words
        for _, other in self._others:
            if words[other + kind] < value:
                self._wait(kind, value)
                break
        if not ORDERED:
            fence()
        if self._fail is not None:
            self._fail("waited-arrived" if kind == ARRIVED else "waited-applied", value)

    def _reached(self, kind: int, value: int) -> bool:
        if kind == _LIMIT_KIND:
            return bool(self._words[LIMIT] >= value)
        return self._all(kind, value)

    def _wait(self, kind: int, value: int) -> None:
        """Yield for a while, then sleep, until a word is there or the team is over."""
        words, began = self._words, perf_counter_ns()
        patience = self.patience(began)
        while not self._reached(kind, value):
            if words[REVOKED]:
                raise Revoked
            if not next(patience):
                self._sleep(kind, value)
        self._waited += perf_counter_ns() - began
        words[self._own + WAITED] = self._waited

    @staticmethod
    def patience(began: int) -> Iterator[bool]:
        """Yield the processor, again and again, for a while; then say False for ever."""
        patience, now = _ALONE_NANOSECONDS, began
        while now - began < patience:
            os.sched_yield()
            before, now = now, perf_counter_ns()
            if now - before > _GIVEN_AWAY_NANOSECONDS:
                patience = _CROWDED_NANOSECONDS
            yield True
        while True:
            yield False

    def _sleep(self, kind: int, value: int) -> None:
        words, asleep = self._words, self._own + ASLEEP
        words[asleep] = sleeping_for(kind, value)
        fence()
        if not self._reached(kind, value) and not words[REVOKED]:
            self._nap()
        words[asleep] = 0

    def _nap(self) -> None:
        """Sleep until somebody wakes this member, or for a moment."""
        for file, _ in self._poll.poll(NAP_SECONDS * 1000):
            if file == self._connection:  # the server has gone, or has left the team
                raise Revoked
            os.eventfd_read(file)

    def _look_at_bell(self, version: int) -> None:
        """Ring, once, where the server has asked to be woken."""
        at = self._words[BELL]
        if version >= at and at != self._rung:
            self._rung = at
            self._memory.ring()
            if self._fail is not None:
                self._fail("bell", version)

    def _give_up(self, version: int) -> None:
        """Leave an update that is not finite to the server, which says what is wrong with it."""
        self._words[TROUBLE] = version
        fence()
        self._memory.ring()
        self._wait(_LIMIT_KIND, 1 << 50)


_LIMIT_KIND = 1000
"""In `ASLEEP`: beyond every word of a member."""


def _range(parameters: int, members: int, number: int) -> tuple[int, int]:
    """The range of flat W that a member updates, in whole cache lines."""
    lines = shares(-(-parameters // _LINE_VALUES), members)
    if number >= len(lines):
        return parameters, parameters
    first, last = lines[number]
    return first * _LINE_VALUES, min(last * _LINE_VALUES, parameters)
