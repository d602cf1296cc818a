"""A worker as the member of a team: updates of W in shared memory, without the server.

`distsgd.transport.team_memory` says what is in the memory, and in which order it is used.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter_ns

import numpy as np

from distsgd.core.arrays import Floats, finite
from distsgd.core.fingerprint import fingerprint
from distsgd.core.messages import Lease
from distsgd.core.model import SlotLoss
from distsgd.core.optim import Updater
from distsgd.core.reduction_tree import shares
from distsgd.core.server.team_steps import RangeSum, TeamSteps
from distsgd.engine.job import Job
from distsgd.engine.processors import move_away
from distsgd.engine.worker import Worker
from distsgd.transport.base import Membership
from distsgd.transport.team_memory import (
    APPLIED,
    ARRIVED,
    ASLEEP,
    BELL,
    FINGERPRINT,
    HELPED,
    LIMIT,
    NAP_SECONDS,
    ORDERED,
    PID,
    PIECE_WORDS,
    REVOKED,
    SHARED,
    STEP,
    TROUBLE,
    VERSION,
    WAITED,
    WRITING,
    fence,
    sleeping_for,
)

__all__ = ["HELP_WORDS", "WORDS", "FailPoint", "Member", "Revoked", "TeamMember"]

_ALONE_NANOSECONDS, _CROWDED_NANOSECONDS = 1_000_000, 40_000
"""How long a member waits by yielding before it sleeps. Waking up from a sleep takes up to 0.2 ms
where a processor has to be woken for it, so a short sleep makes the others wait in turn. But where
anything else wants this processor, a member that only yields takes time from those it waits for."""

_GIVEN_AWAY_NANOSECONDS = 200_000
"""A yield that takes longer has let another process run."""

_HELP_NANOSECONDS, _HELP_SHARE = 200_000, 0.25
"""A member helps once it has waited for so long, and for this share of what a piece takes, while
nothing else wants its processor. Less would be the usual difference between two that are equally
fast."""

_SHARED_PARAMETERS = 1 << 16
"""The least that members share the application of an update for. For less, it takes longer to tell
the others, and to have W from another core's cache, than to apply all."""

_LOOK_NANOSECONDS = 5_000_000
"""How often a member looks whether it shares its processor with another."""

_REST_SECONDS = 0.05
"""How long a member rests that has no processor for itself. Two that take turns on one processor
are slower than one of them: each finds the cache full of what is the other's."""

_LARGEST_LOSS = 1e300
_LINE_VALUES = 16

WORDS = (
    "begin", "sums", "record", "arrived", "complete", "total", "half-applied", "range", "applied",
    "bell",
)  # fmt: skip
"""Places between two words of the protocol, in their order, at which a test can end a member."""

HELP_WORDS = ("helping", "helped", "behind", "half-caught-up", "caught-up")
"""Further ones: of a member that helps, and of one that the others have left behind."""

FailPoint = Callable[[str, int], None]
"""Called at each of these words, with the version that is being made."""


class Revoked(Exception):
    """The team is over."""


class _Behind(Exception):
    """Others have gone on without this member."""


class Member:
    """What all members of teams have in common: how they wait, and write down what they have made.

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
        self._steps = TeamSteps(job.plan, job.policy, place.memory.shape.members)
        self._poll = select.poll()
        self._waker = place.memory.waker(place.number)
        for file in (self._waker, connection):
            self._poll.register(file, select.POLLIN)
        self._connection = connection
        self._waited = self._count = 0
        self._words[self._own + PID] = os.getpid()
        self._prepare()

    def _prepare(self) -> None:
        """Make what it takes to work as this kind of member."""
        raise NotImplementedError

    def run(self) -> int:
        """Work until the team is over; returns how many pieces were computed."""
        try:
            self._work()
        except Revoked:
            pass
        finally:
            self._memory.close()
        return self._count

    def _work(self) -> None:
        raise NotImplementedError

    def _updater(self, member: int, copy: int, part: slice) -> Updater:
        """Applies updates to a range of one of a member's copies of W."""
        job, memory = self._job, self._memory
        weights = memory.weights[member, copy, part]
        optimizer = job.update_rule(weights)
        for number, name in enumerate(sorted(optimizer.state)):
            optimizer.state[name] = memory.states[member, number, copy, part]
        return Updater(weights, decay=job.decay()[part], optimizer=optimizer, schedule=job.schedule)

    def _point(self, word: str, version: int) -> None:
        if self._fail is not None:
            self._fail(word, version)

    def _may_begin(self, version: int) -> None:
        """Wait until the next update is granted."""
        words = self._words
        if words[REVOKED]:
            raise Revoked
        if words[LIMIT] <= version:
            self._wait(version + 1)
        self._point("begin", version + 1)

    def _wait(self, limit: int) -> None:
        """Yield for a while, then sleep, until the limit is there or the team is over."""
        words, began = self._words, perf_counter_ns()
        patience = self.patience(began)
        while words[LIMIT] < limit:
            if words[REVOKED]:
                raise Revoked
            if not next(patience):
                self._sleep(sleeping_for(limit, limit=True), lambda: bool(words[LIMIT] >= limit))
        self._has_waited(began)

    def _has_waited(self, began: int) -> None:
        self._waited += perf_counter_ns() - began
        self._words[self._own + WAITED] = self._waited

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

    def _sleep(self, code: int, reached: Callable[[], bool]) -> None:
        words, asleep = self._words, self._own + ASLEEP
        words[asleep] = code
        fence()
        if not reached() and not words[REVOKED]:
            self._nap()
        words[asleep] = 0

    def _nap(self, seconds: float = NAP_SECONDS) -> None:
        """Sleep until somebody wakes this member, or for a moment."""
        for file, _ in self._poll.poll(seconds * 1000):
            if file == self._connection:  # the server has gone, or has left the team
                raise Revoked
            os.eventfd_read(file)

    def _give_up(self, version: int) -> None:
        """Leave an update that is not finite to the server, which says what is wrong with it."""
        self._words[TROUBLE] = version
        fence()
        self._memory.ring()
        self._wait(1 << 50)

    def _take_fingerprint(self, weights: Floats, ring: int, version: int) -> None:
        """Write down the fingerprint of W of a version, before others can see the version."""
        head = self._memory.heads[ring, (version - 1) % self._memory.shape.records, FINGERPRINT]
        head[1] = np.uint64(fingerprint(weights)).view(np.int64)
        if not ORDERED:
            fence()
        head[0] = version

    def _record(
        self, losses: Sequence[SlotLoss], ring: int, version: int, at: int = 0
    ) -> tuple[int, int]:
        """Write down losses for the update after a version, from a place in its record on.

        Returns:
            the row of the record, and how many examples are classified rightly.
        """
        row = version % self._memory.shape.records
        record, correct = self._memory.losses[ring, row], 0
        for place, loss in enumerate(losses, at):
            if not abs(loss.loss) < _LARGEST_LOSS:
                self._give_up(version + 1)
            record[place] = loss.loss
            correct += loss.correct
        return row, correct


class TeamMember(Member):
    """Makes updates together with the other members, until the team is over.

    Arguments are those of `Member`.
    """

    def _prepare(self) -> None:
        """See `Member`."""
        job, memory, number = self._job, self._memory, self._number
        members = memory.shape.members
        self._members = [memory.member(member) for member in range(members)]
        self._others = [
            (other, self._members[other]) for other in range(members) if other != number
        ]
        self._parts = [
            _Part([self._updater(number, copy, part) for copy in (0, 1)], part, job)
            for part in _parts(job.parameters, members)
        ]
        self._weights = list(memory.weights[number])
        self._sums = [list(memory.sums[:, copy]) for copy in (0, 1)]
        self._rung, self._losses_end, self._looked_at, self._rests = -1, 0, 0, False
        self._version, self._step = self._words[VERSION], self._words[STEP]
        self._cut = self._steps.cut(self._step)
        self._piece_took = 0

    def _work(self) -> None:
        steps, trace = self._steps, self._worker.trace
        lease = self._lease(self._step, self._version)
        while True:
            version, step = self._version, self._step
            self._may_begin(version)
            self._cut, self._losses_end = steps.cut(step), 0
            trace.lap("wait")
            if lease is not None:
                self._compute(lease)
                self._mark(ARRIVED, version + 1)
                self._point("arrived", version + 1)
            after = step + steps.steps(step)
            lease = self._lease(after, version + 1)
            self._worker.gather(lease)
            try:
                sources = self._meet(step, version)
                trace.lap("wait")
                self._apply(step, version, sources)
                self._version, self._step = version + 1, after
            except _Behind:
                self._catch_up()
                lease = self._lease(self._step, self._version)
            trace.lap("update")
            self._look_at_bell()
            if self._rests:
                self._rest()
                self._look_at_bell()
                lease = self._lease(self._step, self._version)

    def _lease(self, step: int, version: int) -> Lease | None:
        """What this member computes of the update that begins at a step."""
        if step >= self._job.plan.total_steps:
            return None
        return self._steps.lease(step, self._number, version, 0)

    # --- pieces ----------------------------------------------------------------------------------

    def _compute(self, lease: Lease) -> None:
        """Put the sums of this member's piece into the memory, and write down its losses."""
        version = lease.version
        began = perf_counter_ns()
        losses = self._worker.sums(lease, self._weights[version & 1], self._rows(lease))
        assert losses is not None
        self._piece_took = perf_counter_ns() - began
        self._point("sums", version + 1)
        self._write_down(losses, self._number, version)
        self._point("record", version + 1)

    def _rows(self, lease: Lease) -> Floats:
        """Where the sums of a piece are put."""
        rows: Floats = self._sums[~lease.version & 1][self._number]
        return rows[lease.first :]

    def _write_down(self, losses: Sequence[SlotLoss], piece: int, version: int) -> None:
        at = self._losses_end
        row, correct = self._record(losses, self._number, version, at)
        self._losses_end += len(losses)
        head, place = self._memory.heads[self._number, row], PIECE_WORDS * piece
        head[place + 1], head[place + 2] = (at << 32) + len(losses), correct
        if not ORDERED:
            fence()
        head[place] = version + 1
        self._count += 1

    def _help(self, piece: int, step: int, version: int) -> None:
        """Compute the piece of a member that does not come, unless it comes meanwhile."""
        lease = self._steps.lease(step, piece, version, 0)
        assert lease is not None
        self._point("helping", version + 1)
        losses = self._worker.sums(
            lease, self._weights[version & 1], self._rows(lease),
            unless=lambda: self._source(piece, version + 1) is not None or self._is_behind(version),
        )  # fmt: skip
        if losses is not None:
            self._write_down(losses, piece, version)
            self._mark(HELPED + piece, version + 1)
            self._point("helped", version + 1)

    # --- the meeting -----------------------------------------------------------------------------

    def _mark(self, word: int, version: int) -> None:
        """Say how far this member is, and wake who has waited for it."""
        words = self._words
        if not ORDERED:
            fence()
        words[self._own + word] = version
        fence()
        code = sleeping_for(version)
        for number, other in self._others:
            if words[other + ASLEEP] == code and (
                word == APPLIED or self._sources(version) is not None
            ):
                self._memory.wake(number)

    def _source(self, piece: int, version: int) -> int | None:
        """The member that has the sums of a piece for a version."""
        words, members = self._words, self._members
        if words[members[piece] + ARRIVED] == version:
            return piece
        for member, base in enumerate(members):
            if words[base + HELPED + piece] == version:
                return member
        return None

    def _sources(self, version: int) -> list[int] | None:
        """Of each piece, the member that has its sums for a version; None if one has not come."""
        found = []
        for piece in range(len(self._cut.pieces)):
            source = self._source(piece, version)
            if source is None:
                return None
            found.append(source)
        return found

    def _is_behind(self, version: int) -> bool:
        """Whether another member has applied what this one is making."""
        words = self._words
        return any(words[other + APPLIED] > version for _, other in self._others)

    def _meet(self, step: int, version: int) -> list[int]:
        """Wait until the sums of all pieces are there, or help; returns who has each.

        Raises:
            _Behind: somebody has applied the update already.
        """
        sources = self._sources(version + 1)
        if sources is None:
            sources = self._wait_or_help(step, version)
        if not ORDERED:
            fence()
        self._point("complete", version + 1)
        return sources

    def _wait_or_help(self, step: int, version: int) -> list[int]:
        words, began = self._words, perf_counter_ns()
        now, crowded, code = began, False, sleeping_for(version + 1)
        while (sources := self._sources(version + 1)) is None:
            if words[REVOKED]:
                raise Revoked
            if self._is_behind(version):
                raise _Behind
            if crowded and now - began > _CROWDED_NANOSECONDS:
                self._sleep(code, partial(self._need_not_wait, version))
                now = perf_counter_ns()
                piece, _ = self._next_to_help(version)
                helps = now - began > NAP_SECONDS * 1e9
            else:
                os.sched_yield()
                before, now = now, perf_counter_ns()
                if now - before > _GIVEN_AWAY_NANOSECONDS:
                    crowded = True
                    self._look_around(now)
                piece, patience = self._next_to_help(version)
                helps = not crowded and now - began > patience
            if helps:
                self._has_waited(began)
                self._help(piece, step, version)
                began = now = perf_counter_ns()
        self._has_waited(began)
        return sources

    def _next_to_help(self, version: int) -> tuple[int, float]:
        """A piece that has not come, and for how many nanoseconds it is waited for.

        A member that has not even applied the last update is not likely to come: those who are
        there divide the pieces of such members. Of the others, the nearest member helps first.
        """
        words, members, number = self._words, self._members, self._number
        missing = [p for p in range(len(self._cut.pieces)) if self._source(p, version + 1) is None]
        there = [n for n, base in enumerate(members) if words[base + APPLIED] >= version]
        away = [piece for piece in missing if piece not in there]
        for place, piece in enumerate(away):
            if there[place % len(there)] == number:
                return piece, 0
        found = [((piece - number - 1) % len(members), piece) for piece in missing]
        rank, piece = min(found, default=(0, 0))  # there is always a first one
        return piece, (rank + 1) * max(_HELP_NANOSECONDS, _HELP_SHARE * self._piece_took)

    def _look_around(self, now: int) -> None:
        """Something else has run on this processor: if that is another member, move away from it.

        Of two the later one moves, or rests for a while if there is no processor to move to.
        """
        if now - self._looked_at > _LOOK_NANOSECONDS:
            self._looked_at = now
            words, version = self._words, self._version
            there = [(n, words[base + PID]) for n, base in self._others
                     if words[base + APPLIED] >= version]  # fmt: skip
            earlier = [pid for number, pid in there if number < self._number]
            moved = move_away(earlier, [pid for number, pid in there if number > self._number])
            self._rests = moved is None

    def _rest(self) -> None:
        """Leave this processor to another member, which helps meanwhile; then catch up."""
        self._rests, words, began = False, self._words, perf_counter_ns()
        words[self._own + ASLEEP] = sleeping_for(-1)
        while not words[REVOKED] and perf_counter_ns() - began < _REST_SECONDS * 1e9:
            self._nap(_REST_SECONDS)
        words[self._own + ASLEEP] = 0
        self._has_waited(began)
        if self._is_behind(self._version):
            self._catch_up()

    def _need_not_wait(self, version: int) -> bool:
        return self._sources(version + 1) is not None or self._is_behind(version)

    # --- W ---------------------------------------------------------------------------------------

    def _apply(self, step: int, version: int, sources: Sequence[int]) -> None:
        """Apply the update to this member's own W.

        Raises:
            _Behind: others have gone on, and overwritten what is needed.
        """
        words, own = self._words, self._own
        shared = len(self._parts) > 1
        total = self._total(self._number if shared else 0, version, sources)
        words[own + WRITING] = version + 1
        if not ORDERED:
            fence()
        self._update(self._number if shared else 0, step, version, total)
        if shared:
            if not ORDERED:
                fence()
            words[own + SHARED] = version + 1
            self._point("shared", version + 1)
            for number, _ in self._others:
                if number < len(self._parts) and not self._take(number, version):
                    total = self._total(number, version, sources)
                    self._update(number, step, version, total)
        self._point("range", version + 1)
        self._take_fingerprint(self._weights[~version & 1], self._number, version + 1)
        self._mark(APPLIED, version + 1)
        self._point("applied", version + 1)

    def _total(self, part: int, version: int, sources: Sequence[int]) -> Floats:
        """The sum of all pieces, of a part of W."""
        words, members, sums = self._words, self._members, self._sums[~version & 1]
        of = self._parts[part]
        total = of.sum.total(self._cut, lambda piece, row: sums[sources[piece]][row, of.slice])
        if not ORDERED:
            fence()
        if any(words[members[source] + APPLIED] > version + 1 for source in sources):
            raise _Behind
        self._point("total", version + 1)
        if not finite(total):
            self._give_up(version + 1)
        return total

    def _update(self, part: int, step: int, version: int, total: Floats) -> None:
        """Apply a total to a part of W."""
        old, new = self._parts[part].updaters[:: -1 if version & 1 else 1]
        for name, array in new.optimizer.state.items():
            np.copyto(array, old.optimizer.state[name])
        self._point("half-applied", version + 1)
        new.version = version
        update = new.average if self._job.policy.local else new.apply
        update(total, self._steps.examples(step), step, old.weights)
        if not finite(new.weights):
            self._give_up(version + 1)

    def _take(self, part: int, version: int) -> bool:
        """Take a part of the updated W from the member whose it is; False if it is not there."""
        words, base, copy = self._words, self._members[part], ~version & 1
        began = perf_counter_ns()
        while words[base + SHARED] != version + 1:
            away = words[base + APPLIED] < version
            if away or perf_counter_ns() - began > _HELP_NANOSECONDS:
                return False
            os.sched_yield()
        if not ORDERED:
            fence()
        memory, number, of = self._memory, self._number, self._parts[part].slice
        np.copyto(memory.weights[number, copy, of], memory.weights[part, copy, of])
        for mine, other in zip(memory.states[number], memory.states[part], strict=True):
            np.copyto(mine[copy, of], other[copy, of])
        if not ORDERED:
            fence()
        if words[base + WRITING] > version + 2:
            raise _Behind
        return True

    def _catch_up(self) -> None:
        """Take W from the member that is furthest."""
        words, memory, mine = self._words, self._memory, self._number
        self._point("behind", self._version + 1)
        while not words[REVOKED]:
            number, base = max(self._others, key=lambda other: words[other[1] + APPLIED])
            version = words[base + APPLIED]
            words[self._own + WRITING] = version
            fence()
            copy = version & 1
            np.copyto(memory.weights[mine, copy], memory.weights[number, copy])
            self._point("half-caught-up", version)
            for own, other in zip(memory.states[mine], memory.states[number], strict=True):
                np.copyto(own[copy], other[copy])
            fence()
            if words[base + WRITING] <= version + 1:
                break
        else:
            raise Revoked
        while self._version < version:
            self._step += self._steps.steps(self._step)
            self._version += 1
        self._mark(APPLIED, version)
        self._point("caught-up", version)

    def _look_at_bell(self) -> None:
        """Ring, once, where the server has asked to be woken."""
        at = self._words[BELL]
        if self._version >= at and at != self._rung:
            self._rung = at
            self._memory.ring()
            self._point("bell", self._version)


class _Part:
    """What it takes to update a range of a member's W.

    Args:
        updaters: one for each copy of W.
        part: the range.
        job: what is trained.
    """

    def __init__(self, updaters: Sequence[Updater], part: slice, job: Job) -> None:
        self.slice, self.updaters = part, list(updaters)
        self.sum = RangeSum(part.stop - part.start, job.dtype, job.plan.most_slots)


def _parts(parameters: int, members: int) -> list[slice]:
    """The ranges of flat W that members update for each other, in whole cache lines.

    The first is the first member's, and so on; if there is one, everybody updates all of W.
    """
    if parameters < _SHARED_PARAMETERS or members == 1:
        return [slice(0, parameters)]
    lines = shares(-(-parameters // _LINE_VALUES), members)
    return [
        slice(first * _LINE_VALUES, min(last * _LINE_VALUES, parameters)) for first, last in lines
    ]
