"""The server's side of a team: its memory, how far it may go, and what it has made.

All methods are called under the lock of the server's host. Times are seconds of one clock, given
by the caller.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from distsgd.core.messages import Decision, StandingLease, Stretch
from distsgd.core.server import ParameterServer
from distsgd.core.server.standing import TeamRecords
from distsgd.engine.job import Job
from distsgd.transport.base import Membership
from distsgd.transport.team_memory import (
    APPLIED,
    ARRIVED,
    ASLEEP,
    BELL,
    FINGERPRINT,
    HITS,
    LIMIT,
    PIECE_WORDS,
    REVOKED,
    SERIAL,
    STEP,
    TICKET,
    TROUBLE,
    TURN,
    VERSION,
    WAITED,
    WRITING,
    TeamMemory,
    TeamShape,
    fence,
)

__all__ = ["MOST_MEMBERS", "TeamHost", "team_shape"]

_LEASE_SECONDS = 0.25
"""How long a standing lease is to take. The team is granted the next one in the middle of it. Each
time the server looks, a member has to wait for its processor, and the others for that member."""

_FIRST_UPDATES, _LEAST_UPDATES = 32, 2
_RING_BYTES = 1 << 20
_MOST_RECORDS = 4096
MOST_MEMBERS = 64
"""More workers than that are no team."""

_OVERDUE_SECONDS, _TIMES_LONGER = 1.0, 20.0
"""A team in which somebody has made nothing for so long, and so many times the usual time, is
revoked."""

_LEAVING_SECONDS = 0.2
"""How long a team that has been revoked is waited for; who has not left then hangs."""

_STANDSTILL_SECONDS = 5.0


def team_shape(
    members: int, parameters: int, dtype: str, states: int, rows: int, losses: int
) -> TeamShape:
    """The memory of a team; the arguments are those of `TeamShape`."""
    records = max(4 * _LEAST_UPDATES, min(_MOST_RECORDS, _RING_BYTES // (8 * losses)))
    return TeamShape(members, parameters, dtype, states, rows, losses, records)


class TeamHost:
    """Has the workers that share memory with the server work as a team.

    Args:
        server: the state machine.
        job: what is trained.
        give: sends a worker its place in the team.

    Attributes:
        bell: an eventfd that the team writes to when the server is to look.
        standing: whether there is a team.
        revoked: whether it has been told to stop.
    """

    def __init__(
        self, server: ParameterServer, job: Job, give: Callable[[int, Membership], None]
    ) -> None:
        self._server, self._job, self._give = server, job, give
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if job.in_team else None
        self.standing = self.revoked = False
        self._near: set[int] = set()
        self._inside: set[int] = set()
        self._left: list[int] = []
        self._members: tuple[int, ...] = ()
        self._memory: TeamMemory | None = None
        self._made = self._granted = 0  # versions
        self._owner = 0  # the member that has W as of what has been read
        self._moved: list[tuple[int, float]] = []  # how far each member is, and since when
        self._home = True
        self._seconds: float | None = None  # of an update
        self._read_at = self._moved_at = self._looked_at = self._revoked_at = 0.0
        self._waits: dict[int, int] = {}

    @property
    def away(self) -> bool:
        """Whether W is with the team, so that the server's copy is not that of its version."""
        return not self._home

    @property
    def paused(self) -> bool:
        """Whether the team has made all that it has been granted, and waits."""
        return self.standing and self._made == self._granted

    def inside(self, worker: int) -> bool:
        """Whether a worker is in the team, and has not left it."""
        return worker in self._inside

    def came(self, worker: int) -> list[Decision]:
        """A worker shares memory with the server from now on."""
        self._near.add(worker)
        return self._tell()

    def went(self, worker: int) -> list[Decision]:
        """It does not any more."""
        self._near.discard(worker)
        return self._tell()

    def _tell(self) -> list[Decision]:
        if self.bell is None:
            return []
        near = sorted(self._near) if len(self._near) <= MOST_MEMBERS else []
        return self._server.team(near, self._updates())

    def _updates(self) -> int:
        """How many updates a lease is to have."""
        if self._seconds is None:
            return _FIRST_UPDATES
        most = self._shape(1).records // 2
        return max(_LEAST_UPDATES, min(most, round(_LEASE_SECONDS / self._seconds)))

    def _shape(self, members: int) -> TeamShape:
        job, states = self._job, len(self._server.optimizer.state)
        return team_shape(
            members, job.parameters, job.dtype, states, job.plan.most_slots, job.most_losses
        )

    def stand(self, lease: StandingLease, now: float) -> bool:
        """Make a team of its members, and have them work; False if there is no memory."""
        server, shape = self._server, self._shape(len(lease.members))
        assert self.bell is not None
        try:
            memory = TeamMemory.make(shape, self.bell)
        except OSError:
            return False
        copy, words = lease.version & 1, memory.words
        owners = slice(0, len(lease.members) if self._job.policy.in_order else 1)
        memory.weights[owners, copy] = server.weights
        for number, name in enumerate(sorted(server.optimizer.state)):
            memory.states[owners, number, copy] = server.optimizer.state[name]
        words[VERSION] = words[TICKET] = lease.version
        words[STEP] = lease.step
        for number, serial in enumerate(lease.serials):
            own = memory.member(number)
            for word in (ARRIVED, APPLIED, WRITING):
                words[own + word] = lease.version
            words[own + SERIAL] = serial
        self._memory, self._members = memory, lease.members
        self._inside, self._left, self._waits = set(lease.members), [], {}
        self._made = self._granted = lease.version
        self._moved = [(lease.version, now)] * len(lease.members)
        self.standing, self.revoked = True, False
        self._read_at = self._moved_at = self._looked_at = now
        self.go_on(lease)
        for number, worker in enumerate(lease.members):
            self._give(worker, Membership(memory, number))
        return True

    def give_up(self) -> None:
        """Form no team any more."""
        self.bell = None
        self._server.team([], 1)

    def go_on(self, lease: StandingLease) -> None:
        """The team may make a further lease."""
        self._granted = lease.version + lease.updates
        self._home = False
        middle = lease.version + (lease.updates + 1) // 2
        can_follow = not self._job.plan.ends_epoch(lease.end - 1)
        memory = self._memory
        assert memory is not None
        memory.words[BELL] = middle if can_follow else self._granted
        fence()
        memory.words[LIMIT] = self._granted
        fence()
        for number in range(len(self._members)):
            if memory.words[memory.member(number) + ASLEEP]:
                memory.wake(number)

    def extend(self) -> bool:
        """Grant the team a further lease, if the state machine does; False if it must stop."""
        lease = self._server.extend(self._updates(), home=self._home)
        if lease is None:
            self.ring_at_end()
            return not self._home  # it goes on to the end of what it has
        self.go_on(lease)
        return True

    def ring_at_end(self) -> None:
        """Have a team that has rung, and is granted no more yet, ring again at its end."""
        memory = self._memory
        assert memory is not None
        if self._home or not self._made >= memory.words[BELL] != self._granted:
            return
        memory.words[BELL] = self._granted
        fence()
        if self._furthest()[0] == self._granted:  # it may have looked at the bell before
            memory.ring()

    def read(self, now: float) -> Stretch | None:
        """What the team has made since the last call; None for nothing."""
        done, self._owner = self._furthest()
        count = done - self._made
        if count <= 0:
            return None
        spent, self._read_at, self._moved_at = now - self._read_at, now, now
        took = spent / count
        self._seconds = took if self._seconds is None else self._seconds + 0.5 * (
            took - self._seconds
        )  # fmt: skip
        stretch = self._server.stood(self._records(self._made, done))
        self._made = done
        return stretch

    def _furthest(self) -> tuple[int, int]:
        """The last version of W that has been made, and the member that has it whole."""
        words = self._words
        if not self._job.policy.in_order:
            found = int(words[VERSION]), 0
        else:
            found = max((applied, number) for number, applied in enumerate(self._applied()))
        fence()
        return found

    def _applied(self) -> list[int]:
        """The version that each member has applied."""
        words, memory = self._words, self._memory
        assert memory is not None
        return [words[memory.member(number) + APPLIED] for number in range(len(self._members))]

    @property
    def _words(self) -> memoryview:
        assert self._memory is not None
        return self._memory.words

    def _records(self, first: int, last: int) -> TeamRecords:
        """The records of the updates that made versions (first, last]."""
        memory = self._memory
        assert memory is not None
        rows = np.arange(first, last) % memory.shape.records
        if not self._job.policy.in_order:
            heads = memory.heads[0, rows]
            return TeamRecords(
                memory.losses[0, rows], heads[:, HITS], turns=heads[:, TURN],
                fingerprints=self._fingerprints(rows, first),
            )  # fmt: skip
        members = len(self._members)
        words = PIECE_WORDS * members
        versions = memory.heads[:, rows, :words:PIECE_WORDS]
        fence()  # who was not waited for may be writing its record now
        there = versions == np.arange(first + 1, last + 1)[:, None]
        heads = memory.heads[:, rows, :words].reshape(members, len(rows), members, -1)
        prints = self._fingerprints(rows, first)
        if (usual := self._usual_records(rows, there, heads)) is not None:
            return usual._replace(fingerprints=prints)
        correct = np.zeros(len(rows), np.int64)
        makers = np.full((len(rows), members), -1)
        losses = []
        for piece in range(members):
            found = np.zeros((len(rows), 0))
            # The one whose piece it is, if there is a choice.
            for member in (piece, *(other for other in range(members) if other != piece)):
                chosen = there[member, :, piece] & (makers[:, piece] < 0)
                if not chosen.any():
                    continue
                makers[chosen, piece] = member
                correct[chosen] += heads[member, chosen, piece, 2]
                for place in np.unique(heads[member, chosen, piece, 1]).tolist():
                    alike = chosen & (heads[member, :, piece, 1] == place)
                    start, count = place >> 32, place & 0xFFFFFFFF
                    if found.shape[1] < count:
                        found = np.pad(found, ((0, 0), (0, count - found.shape[1])))
                    found[alike, :count] = memory.losses[member, rows[alike], start : start + count]
            losses.append(found)
        return TeamRecords(np.concatenate(losses, axis=1), correct, makers, fingerprints=prints)

    def _fingerprints(self, rows: NDArray[np.int64], first: int) -> NDArray[np.uint64] | None:
        """Of W after each of these updates, by a member that has applied it."""
        assert self._memory is not None
        versions, prints = np.moveaxis(self._memory.heads[:, rows, FINGERPRINT], 2, 0)
        there = versions == np.arange(first + 1, first + len(rows) + 1)
        if not there.any(axis=0).all():
            return None
        chosen: NDArray[np.int64] = prints[there.argmax(axis=0), np.arange(len(rows))]
        return chosen.view(np.uint64)

    def _usual_records(
        self, rows: NDArray[np.int64], there: NDArray[np.bool_], heads: NDArray[np.int64]
    ) -> TeamRecords | None:
        """The same, quickly, if everybody has made its own piece, and all updates are alike."""
        memory, own = self._memory, np.arange(len(there))
        assert memory is not None
        heads = heads[own, :, own]
        places = heads[:, 0, 1]
        if not there[own, :, own].all() or (heads[:, :, 1] != places[:, None]).any():
            return None
        losses = [
            memory.losses[member, rows, place >> 32 : (place >> 32) + (place & 0xFFFFFFFF)]
            for member, place in enumerate(places.tolist())
        ]
        return TeamRecords(np.concatenate(losses, axis=1), heads[:, :, 2].sum(axis=0))

    def bring_home(self) -> None:
        """Take W and the state of the optimiser out of the memory, as of what has been read."""
        memory, owner, copy = self._memory, self._owner, self._made & 1
        assert memory is not None
        if not self._home:
            names = sorted(self._server.optimizer.state)
            state = {name: memory.states[owner, number, copy] for number, name in enumerate(names)}
            self._server.home(memory.weights[owner, copy], state)
            self._home = True

    @property
    def in_trouble(self) -> bool:
        """Whether a member has found an update that is not finite."""
        return self._memory is not None and self._memory.words[TROUBLE] > 0

    @property
    def hungry(self) -> bool:
        """Whether the team has come to where it was to wake the server."""
        return self._memory is not None and self._made >= self._memory.words[BELL]

    def revoke(self, now: float) -> None:
        """Have the team stop before the next word of its protocol."""
        if self.standing and not self.revoked:
            memory = self._memory
            assert memory is not None
            self.revoked, self._revoked_at = True, now
            memory.words[REVOKED] = 1
            fence()
            for number in range(len(self._members)):
                memory.wake(number)

    def leave(self, worker: int, *, dead: bool = False) -> bool:
        """A member has left, and waits for work, or is dead; returns whether it was the last."""
        self._inside.discard(worker)
        if worker in self._left:
            self._left.remove(worker)
        if not dead:
            self._left.append(worker)
        return not self._inside

    def close(self) -> tuple[list[int], list[int]]:
        """The team has ended, and W is home.

        Returns:
            the members that have left and wait for work, and those that are still inside.
        """
        assert self._memory is not None and self._home
        left, late = self._left, sorted(self._inside)
        self._memory.close()
        self._memory, self._left, self._inside = None, [], set()
        self.standing = self.revoked = False
        return left, late

    def look(self, now: float) -> bool:
        """Revoke a team in which somebody makes nothing for long.

        Returns:
            whether one that has been revoked is to be closed.
        """
        if not self.standing:
            return False
        stood, self._looked_at = now - self._looked_at, now
        if stood > _STANDSTILL_SECONDS:  # the host itself stood still
            self._moved_at, self._revoked_at = now, now
            self._moved = [(version, now) for version, _ in self._moved]
        if self.revoked:
            return now - self._revoked_at > _LEAVING_SECONDS
        bound = max(_OVERDUE_SECONDS, _TIMES_LONGER * (self._seconds or 0.0))
        made_nothing = self._furthest()[0] == self._made and now - self._moved_at > bound
        stands = False
        if self._job.policy.in_order:  # else they do not wait for each other
            for number, version in enumerate(self._applied()):
                if version != self._moved[number][0] or version >= self._made:
                    self._moved[number] = version, now
            stands = any(now - since > bound for _, since in self._moved)
        if made_nothing or stands:
            self.revoke(now)
        return False

    def waits(self) -> dict[int, float]:
        """Worker -> seconds that it has waited in the team since the last call."""
        found: dict[int, float] = {}
        if self._memory is not None:
            for number, worker in enumerate(self._members):
                waited = int(self._memory.words[self._memory.member(number) + WAITED])
                found[worker] = (waited - self._waits.get(worker, 0)) / 1e9
                self._waits[worker] = waited
        return found
