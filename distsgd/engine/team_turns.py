"""A member of a team whose members do not wait for each other: they update W in turns (`asp`)."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter_ns

import numpy as np

from distsgd.core.arrays import Floats, finite
from distsgd.core.messages import Lease
from distsgd.core.model import SlotLoss
from distsgd.engine.job import Job
from distsgd.engine.team import FailPoint, Member, Revoked, TeamMember
from distsgd.engine.worker import Worker
from distsgd.transport.base import Membership
from distsgd.transport.team_memory import (
    ARRIVED,
    BELL,
    HITS,
    LIMIT,
    ORDERED,
    REVOKED,
    SERIAL,
    STEP,
    TICKET,
    TURN,
    VERSION,
    WAITED,
    fence,
)

__all__ = ["TURN_WORDS", "TurnMember", "join_team"]

TURN_WORDS = ("begin", "sums", "locked", "half-applied", "range", "record", "published", "ticket")
"""As `distsgd.engine.team.WORDS`, of a member that takes turns."""


def join_team(
    job: Job,
    worker: Worker,
    place: Membership,
    connection: int,
    fail: FailPoint | None = None,
) -> int:
    """Work as the member of a team until it is over; arguments as for `Member`.

    Returns:
        how many pieces were computed.
    """
    kind: type[Member] = TeamMember if job.policy.in_order else TurnMember
    return kind(job, worker, place, connection, fail).run()


class TurnMember(Member):
    """Computes whole minibatches, and applies each when it is done; arguments as for `Member`."""

    def _prepare(self) -> None:
        """See `Member`."""
        job = self._job
        # W of the first member is everybody's.
        self._updaters = [self._updater(0, copy, slice(None)) for copy in (0, 1)]
        self._sums = self._memory.sums[self._number, 0]
        self._weights: Floats = np.empty(job.parameters, job.dtype)

    def _work(self) -> None:
        words, trace = self._words, self._worker.trace
        serial = words[self._own + SERIAL]
        offset = words[STEP] - words[self._own + ARRIVED]  # from a ticket to its step
        lease: Lease | None = None
        losses: Sequence[SlotLoss] = ()
        while True:
            self._lock()
            trace.lap("wait")
            if lease is not None:
                self._take_turn(lease, losses)
                serial += 1
            ticket = self._ticket()
            version = words[VERSION]
            if ticket is not None:
                np.copyto(self._weights, self._memory.weights[0, version & 1])
            self._memory.unlock()
            self._point("ticket", version)
            trace.lap("update")
            if ticket is None:
                lease = None
                self._may_begin(words[TICKET])
                continue
            lease = self._steps.lease(ticket + offset, self._number, version, serial)
            assert lease is not None
            self._point("begin", version + 1)
            found = self._worker.sums(lease, self._weights, self._sums)
            assert found is not None
            losses = found
            self._point("sums", version + 1)
            self._worker.get_ready(lease)

    def _lock(self) -> None:
        """Wait for one's turn, without sleeping in the system: the team may be over."""
        began = perf_counter_ns()
        if not self._memory.try_lock():
            patience = self.patience(began)
            while not self._memory.try_lock():
                if self._words[REVOKED]:
                    raise Revoked
                if not next(patience):
                    self._nap()
            self._waited += perf_counter_ns() - began
            self._words[self._own + WAITED] = self._waited
        if self._words[REVOKED]:  # looked at inside, so that at most one more version is made
            self._memory.unlock()
            raise Revoked

    def _ticket(self) -> int | None:
        """The number of the next update to compute; None if none is granted."""
        words = self._words
        ticket: int = words[TICKET]
        if words[REVOKED] or ticket >= words[LIMIT]:
            return None
        words[TICKET] = ticket + 1
        return ticket

    def _take_turn(self, lease: Lease, losses: Sequence[SlotLoss]) -> None:
        """Apply an update, in the copy of W that is not that of the present version."""
        words, memory = self._words, self._memory
        version = words[VERSION]
        self._point("locked", version + 1)
        total = self._sums[0]
        if not finite(total):
            self._give_up(version + 1)
        old, new = self._updaters[version & 1], self._updaters[~version & 1]
        for name, array in new.optimizer.state.items():
            np.copyto(array, old.optimizer.state[name])
        self._point("half-applied", version + 1)
        new.version = version
        new.apply(total, self._job.plan.batch_examples(lease.step), lease.step, old.weights)
        if not finite(new.weights):
            self._give_up(version + 1)
        self._point("range", version + 1)
        row, correct = self._record(losses, 0, version)
        memory.losses[0, row, len(losses) :] = 0
        memory.heads[0, row, HITS] = correct
        memory.heads[0, row, TURN] = (self._number, lease.step, lease.version, lease.serial)
        self._take_fingerprint(new.weights, 0, version + 1)
        self._point("record", version + 1)
        if not ORDERED:
            fence()
        words[VERSION] = version + 1
        self._count += 1
        self._point("published", version + 1)
        if version + 1 == words[BELL] or version + 1 == words[LIMIT]:
            memory.ring()
