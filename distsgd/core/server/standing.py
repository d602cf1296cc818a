"""What a team has been granted, and what it has made of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.core.messages import Lease, StandingLease, Stretch
from distsgd.core.optim import Schedule
from distsgd.core.plan import Plan
from distsgd.core.server.consistency.base import Policy
from distsgd.core.server.open_minibatch import exact_sum
from distsgd.core.server.team_steps import TeamSteps

__all__ = ["Standing", "TeamRecords"]

_FIELDS = 1 + len(Lease._fields)
"""Worker and lease of a contribution."""


class TeamRecords(NamedTuple):
    """What a team has written down of its next updates.

    Attributes:
        losses: sum of the losses of each slot, float64 of shape (updates, slots); 0 in places that
            an update does not use.
        correct: examples that were classified rightly, int64 of shape (updates,).
        makers: of each piece, the number of the member that has computed it, int64 of shape
            (updates, pieces), -1 beyond the last piece; None if each has computed its own.
        turns: where an update is that of one member: number of the member, step, version of W that
            it was computed at, and serial, int64 of shape (updates, 4).
        fingerprints: of W after each, uint64 of shape (updates,); None if one is missing.
    """

    losses: NDArray[np.float64]
    correct: NDArray[np.int64]
    makers: NDArray[np.int64] | None = None
    turns: NDArray[np.int64] | None = None
    fingerprints: NDArray[np.uint64] | None = None


class Standing:
    """The standing leases of a team, one after another.

    Args:
        plan: the slots of each step.
        policy: how a minibatch is cut.
        members: workers of the team, in the order of their pieces.
        serials: of each member's next answer.
        step: first step of the plan.
        version: version of W there.

    Attributes:
        end: one past the last step that has been granted.
    """

    def __init__(
        self,
        plan: Plan,
        policy: Policy,
        members: tuple[int, ...],
        serials: tuple[int, ...],
        step: int,
        version: int,
    ) -> None:
        self._plan, self._members = plan, members
        self._steps = TeamSteps(plan, policy, len(members))
        self._granted_serials = list(serials)  # as of the end
        self._granted = version  # version of W at the end
        self._serials = list(serials)  # as of what has been made
        self._step, self._version = step, version
        self.end = step
        self._ahead: set[int] = set()  # steps that have been made after one that has not

    @property
    def left(self) -> int:
        """Updates that have been granted and not been made."""
        return self._granted - self._version

    @property
    def resume_at(self) -> int:
        """One past the last step that the team has made."""
        return max(self._ahead, default=self._step - 1) + 1

    @property
    def left_out(self) -> Sequence[int]:
        """Steps before that one that it has not made."""
        return [step for step in range(self._step, self.resume_at) if step not in self._ahead]

    def serials(self) -> Iterator[tuple[int, int]]:
        """Worker and serial of its next answer, after what has been made."""
        return zip(self._members, self._serials, strict=True)

    def grant(
        self, updates: int, avoid: Callable[[int], bool] | None = None
    ) -> StandingLease | None:
        """The lease that follows, within one epoch.

        Args:
            updates: the most it may have.
            avoid: whether the update of a step is not the team's.

        Returns:
            it; None if the next update is not the team's.
        """
        plan, steps, serials = self._plan, self._steps, tuple(self._granted_serials)
        step, count = self.end, 0
        while count < updates and step < plan.total_steps:
            if not steps.suits(step) or (avoid is not None and avoid(step)):
                break
            for member in range(len(steps.pieces(step))):
                self._granted_serials[member] += 1
            count += 1
            step += steps.steps(step)
            if plan.ends_epoch(step - 1):
                break
        if not count:
            return None
        lease = StandingLease(self.end, step, self._granted, count, self._members, serials)
        self.end, self._granted = step, self._granted + count
        return lease

    def made(self, records: TeamRecords, schedule: Schedule) -> Stretch:
        """The team has made the next updates, which are of one epoch.

        Args:
            records: what it has written down of them.
            schedule: learning rate of each step.
        """
        plan, count = self._plan, len(records.correct)
        epoch, version = plan.epoch_of(self._step), self._version
        if records.turns is not None:
            starts, answers = self._take_turns(records.turns)
        else:
            starts = np.empty(count, np.int64)
            answers = np.full((count, len(self._members), _FIELDS), -1, np.int64)
            done = 0
            while done < count:
                alike = self._alike(count - done)
                part = slice(done, done + alike)
                makers = None if records.makers is None else records.makers[part]
                self._make(starts[part], answers[part], makers)
                done += alike
        examples = np.array([self._steps.examples(step) for step in starts.tolist()], np.int64)
        sums = np.array([exact_sum(row) for row in records.losses.tolist()], np.float64)
        rates = np.array([schedule.at(step) for step in starts.tolist()], np.float64)
        ends = count > 0 and not self.left and plan.ends_epoch(self.end - 1)
        return Stretch(
            version, epoch, starts, sums / examples, records.correct, examples, rates, answers,
            ends, records.fingerprints,
        )  # fmt: skip

    def _alike(self, most: int) -> int:
        """How many of the next updates are cut in the same way, and take as many steps."""
        plan, steps = self._plan, self._steps
        if steps.steps(self._step) > 1:
            return 1
        left = plan.steps_per_epoch - self._step % plan.steps_per_epoch
        return max(1, min(most, left - 1))

    def _make(
        self,
        starts: NDArray[np.int64],
        answers: NDArray[np.int64],
        makers: NDArray[np.int64] | None,
    ) -> None:
        """The next updates, which are alike, have been made: fill in who contributed what."""
        count, each = len(starts), self._steps.steps(self._step)
        numbers = np.arange(count)
        starts[:] = self._step + numbers * each
        pieces = len(self._steps.pieces(self._step))
        if makers is None:
            makers = np.broadcast_to(np.arange(pieces), (count, pieces))
        workers, serials = np.array(self._members), self._count(makers[:, :pieces])
        for piece in range(pieces):
            lease = self._steps.lease(self._step, piece, self._version, 0)
            assert lease is not None
            answers[:, piece] = (0, *lease)
            answers[:, piece, 0] = workers[makers[:, piece]]
            answers[:, piece, 1] = starts
            answers[:, piece, 4] += numbers
            answers[:, piece, 7] = serials[:, piece]
        self._step += count * each
        self._version += count

    def _count(self, makers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The serial of each answer, of members that have made these pieces one after another."""
        serials = np.empty(makers.shape, np.int64)
        for member, before in enumerate(self._serials):
            own = makers == member
            count = int(own.sum())
            serials[own] = before + np.arange(count)
            self._serials[member] += count
        return serials

    def _take_turns(self, turns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Members have made updates of one piece each: their steps, and who contributed what."""
        members, starts, versions, serials = turns.T
        answers = np.zeros((len(turns), 1, _FIELDS), np.int64)
        answers[:, 0, 0] = np.array(self._members)[members]
        answers[:, 0, 1] = starts
        answers[:, 0, 3] = [self._plan.slots(step) for step in starts.tolist()]
        answers[:, 0, 4] = versions
        answers[:, 0, 5] = 1
        answers[:, 0, 7] = serials
        for member, serial in zip(members.tolist(), serials.tolist(), strict=True):
            self._serials[member] = max(self._serials[member], serial + 1)
        self._ahead.update(starts.tolist())
        while self._step in self._ahead:
            self._ahead.remove(self._step)
            self._step += 1
        self._version += len(turns)
        return starts, answers
