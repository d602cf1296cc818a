"""Memory that a team shares: W of each member, the sums of each, and words that order their use.

It is one sealed anonymous file, made by the server and mapped by every member:

    control     one word a cache line: limit, revoked, bell, trouble, version, step, ticket
    members     for each member lines of its own: arrived | applied, writing, shared | asleep |
                serial, waited, pid | helped, a word for each piece
    weights     for each member W twice: version v is in copy v mod 2
    states      for each member each array of the optimiser twice, likewise
    sums        for each member the sums of an update twice: those of version v are in v mod 2, each
                node's in the row of its first leaf
    records     for each member a ring of records, one an update: for each piece a version, a place
                and hits; a version and the fingerprint of its W; then losses of slots

**Each writes its own part alone, and reads those of others; nobody waits for a member that is not
there.** What is computed is a pure function of W, slots and sums: every member would write the same
bits. Member m computes piece m of each update. Who finds that a piece does not come computes
it too: so does a member beside one that has died, is stopped, or has to share its processor with
other work. An update, from version v to v + 1, takes a member through these words:

    1  v < limit, and not revoked           may it begin
    2  sums, record                         of its piece, computed at its own copy v mod 2
    3  arrived = v + 1                      ... are there
    4  of each piece: some q has            wait; then compute the piece as well: sums, record,
       arrived = v + 1 or helped = v + 1    helped = v + 1
    5  total                                of all sums
    6  each q of 4 has applied <= v + 1     the total is that of v + 1
    7  writing = v + 1, copy v + 1 mod 2    old W, total, update rule; fingerprint
    8  applied = v + 1                      ... is there

So there is one meeting an update, and no second: everybody applies all of W. Where W is large, each
begins with a range of its own in 7, stores shared = v + 1, and takes the other ranges from those
who have shared them, or computes them if they do not come; q's range was not overwritten meanwhile
if q has writing <= v + 2 afterwards.

A member that was away finds in 4 or 6 that others have gone on without it. It looks for the one
that has applied most, a say, copies W and states from there, and finds them whole if that one has
writing <= a + 1 afterwards; else it looks again. Then it has applied a as well.

Why nobody uses what is being overwritten: sums of v + 1 are next overwritten by those of v + 3, by
a member that has applied v + 2 before; so 6 finds it. A copy of W of version a is next overwritten
by version a + 2 or a later one, and writing says so before. The words are compared for equality in
4, as a member that has gone on elsewhere has no sums of v + 1. A record of version v is overwritten
by a later one only after the limit has allowed that, so after the server has read it.

The server takes a version as made when any member has applied it: then all records of it are there.
It takes W from that member when the team has come to its limit, or has been revoked: a member that
has applied v can write version v + 1 then, to its other copy, and no more, however late it wakes.

Where members take turns (`asp`), each update is that of one member: under a lock it applies its
sums to the other copy of W of the first member, which is everybody's, writes a record into the
first ring (hits, member, step, version read, serial, losses), stores version = v + 1, takes the
number of its next update (ticket), and copies W for itself. The lock is one of the file (POSIX,
`fcntl.lockf`), which the system takes from a process that dies. A member that is stopped inside it
can finish one version later, into the copy that nobody else uses; the server goes by the version
that it has read.

Order of the stores: a word is one aligned store of eight bytes, after all that it announces
(`writing`: before), and a check is a load after all that it is about. On x86 stores become visible
in their order, and loads are done in theirs, so that is enough. Elsewhere (Arm) `fence` stands
between the two on either side. Going to sleep needs more, on every processor: the sleeper stores
`asleep` and then loads the words it waits for, the other stores such a word and then loads
`asleep`;
with `fence` between each store and load, one of the two sees the other's. `fence` is an atomic
read-modify-write on x86, which is a full barrier; elsewhere a call of sched_yield, in which the
kernel passes one (`smp_mb__after_spinlock` in its `__schedule`). A sleeper also looks again after
`NAP_SECONDS` by itself.

Members sleep on an eventfd each, which the others and the server write to, and on the socket to the
server, which closes if that dies. A further eventfd is the server's bell.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.errors import ChannelClosed
from distsgd.transport.shared_file import LINE, anonymous_file, row_bytes

__all__ = [
    "APPLIED",
    "ARRIVED",
    "ASLEEP",
    "BELL",
    "FINGERPRINT",
    "HELPED",
    "HITS",
    "LIMIT",
    "NAP_SECONDS",
    "ORDERED",
    "PID",
    "PIECE_WORDS",
    "REVOKED",
    "SERIAL",
    "SHARED",
    "STEP",
    "TICKET",
    "TROUBLE",
    "TURN",
    "VERSION",
    "WAITED",
    "WRITING",
    "TeamMemory",
    "TeamShape",
    "fence",
    "sleeping_for",
]  # fmt: skip

NAP_SECONDS = 0.005
"""The longest sleep in which a member does not look at the words."""

_WORDS = LINE // 8
LIMIT, REVOKED, BELL, TROUBLE, VERSION, STEP, TICKET = (n * _WORDS for n in range(7))
"""The words of control: the version up to which the team may go; whether it must stop; the version
at which the server is woken; the version that a member cannot make; version and step at which the
team begins. In turns, the version is that of W now, and a ticket is the version that an update
would make if none came between, less one."""

PIECE_WORDS = 3
"""Words of a record for each piece: the version if it is there, where its losses are (the first,
and how many, in 32 bits each), and examples classified rightly."""

HITS, TURN = 0, slice(1, 5)
"""Words of a record in turns: examples classified rightly; member, step, version read, serial."""

FINGERPRINT = slice(-2, None)
"""The last words before the losses of a record: the version, and the fingerprint of its W."""

_CONTROL_LINES, _MEMBER_LINES = 7, 4
ARRIVED, APPLIED, ASLEEP, SERIAL, HELPED = (n * _WORDS for n in range(5))
WRITING, SHARED = APPLIED + 1, APPLIED + 2
WAITED, PID = SERIAL + 1, SERIAL + 2
"""The words of a member, from its first on: how far it is; what it sleeps for, or 0; the serial of
its first answer; nanoseconds it has waited; its process; for which version it has helped with each
piece."""


def sleeping_for(version: int, *, limit: bool = False) -> int:
    """The word `ASLEEP` of a member that sleeps until a version can be made, or is granted."""
    return 2 * version + 1 + limit


def _strong_fence() -> Callable[[], None]:
    lock = threading.Lock()
    acquire, release = lock.acquire, lock.release

    def fence() -> None:
        acquire()
        release()

    return fence


ORDERED = platform.machine() in ("x86_64", "AMD64")
"""Whether stores become visible in their order, and loads are done in theirs."""

fence: Callable[[], None] = _strong_fence() if ORDERED else os.sched_yield
"""No load or store is done on the other side of this."""


@dataclass(frozen=True)
class TeamShape:
    """How large the memory of a team is.

    Attributes:
        members: how many.
        parameters: length of flat W.
        dtype: its dtype.
        states: arrays of the optimiser.
        rows: leaves of an update at most.
        losses: losses of a record at most.
        records: how many a ring has.
    """

    members: int
    parameters: int
    dtype: str
    states: int
    rows: int
    losses: int
    records: int

    @property
    def control_words(self) -> int:
        """Words of control and members."""
        return _CONTROL_LINES * _WORDS + self.member_words * self.members

    @property
    def member_words(self) -> int:
        """Words of a member."""
        return (_MEMBER_LINES - (-self.members // _WORDS)) * _WORDS

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector of the length of W, a whole number of cache lines."""
        return row_bytes(self.parameters, self.dtype)

    @property
    def vectors(self) -> int:
        """How many such vectors there are."""
        return 2 * self.members * (1 + self.states + self.rows)

    @property
    def head_words(self) -> int:
        """Words of a record before its losses, a whole number of cache lines."""
        return -(-(PIECE_WORDS * self.members + 2) // _WORDS) * _WORDS

    @property
    def record_words(self) -> int:
        """Words of a record, a whole number of cache lines."""
        return self.head_words + -(-self.losses // _WORDS) * _WORDS

    @property
    def size(self) -> int:
        """Bytes of all."""
        records = self.members * self.records * self.record_words * 8
        return self.control_words * 8 + self.vectors * self.vector_bytes + records


class TeamMemory:
    """The memory of a team, as arrays.

    Args:
        file: descriptor of the anonymous file; kept open while this lives.
        wakers: an eventfd for each member, and the server's bell.
        shape: how large it is.

    Attributes:
        shape: as given.
        words: the words of control and members.
        weights: of each member both copies of flat W, shape (members, 2, parameters).
        states: of each member and array of the optimiser both copies, shape (members, states, 2,
            parameters).
        sums: of each member, shape (members, 2, rows, parameters).
        losses: of each record, shape (members, records, losses), float64.
        heads: of each record, what precedes them, int64: see `PIECE_WORDS`, `HITS`, `TURN` and
            `FINGERPRINT`.
    """

    def __init__(self, file: int, wakers: Sequence[int], shape: TeamShape) -> None:
        self._files = (file, *wakers)
        self.shape = shape
        self._memory = memory = mmap.mmap(file, shape.size)
        self.words = memoryview(memory)[: shape.control_words * 8].cast("q")
        start = shape.control_words * 8
        rows = np.frombuffer(
            memory,
            np.dtype(shape.dtype),
            offset=start,
            count=shape.vectors * shape.vector_bytes // np.dtype(shape.dtype).itemsize,
        ).reshape(shape.members, -1, shape.vector_bytes // np.dtype(shape.dtype).itemsize)
        rows = rows[:, :, : shape.parameters]  # fmt: skip
        own, size = 2 * (1 + shape.states), (shape.members, -1, 2, shape.parameters)
        self.weights: Floats = rows[:, :2]
        self.states: Floats = rows[:, 2:own].reshape(size) if shape.states else rows[:, :0]
        self.sums: Floats = rows[:, own:].reshape(shape.members, 2, shape.rows, -1)
        start += shape.vectors * shape.vector_bytes
        count = shape.members * shape.records * shape.record_words
        records = np.frombuffer(memory, np.int64, offset=start, count=count)
        records = records.reshape(shape.members, shape.records, shape.record_words)
        self.heads: NDArray[np.int64] = records[:, :, : shape.head_words]
        first, last = shape.head_words, shape.head_words + shape.losses
        self.losses: NDArray[np.float64] = records.view(np.float64)[:, :, first:last]

    @classmethod
    def make(cls, shape: TeamShape, bell: int) -> TeamMemory:
        """Make the memory of a new team.

        Args:
            shape: how large it is to be.
            bell: the server's eventfd; a copy is kept.

        Raises:
            OSError: the system refuses it.
        """
        files = [anonymous_file(shape.size)]
        try:
            for _ in range(shape.members):
                files.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            files.append(os.dup(bell))
            return cls(files[0], files[1:], shape)
        except OSError:
            for file in files:
                os.close(file)
            raise

    @classmethod
    def attach(cls, files: Sequence[int], shape: TeamShape) -> TeamMemory:
        """Map what the server has made.

        Raises:
            ChannelClosed: it is not of this shape.
        """
        wrong = len(files) != shape.members + 2 or os.fstat(files[0]).st_size != shape.size
        if wrong:
            for file in files:
                os.close(file)
            raise ChannelClosed("the parameter server has not shared the memory of a team")
        return cls(files[0], files[1:], shape)

    @property
    def files(self) -> Sequence[int]:
        """Descriptors to be given to a member: the file, the members' eventfds, the bell."""
        return self._files

    def member(self, number: int) -> int:
        """The first word of a member."""
        return _CONTROL_LINES * _WORDS + self.shape.member_words * number

    def wake(self, number: int) -> None:
        """Wake a member."""
        os.eventfd_write(self._files[1 + number], 1)

    def ring(self) -> None:
        """Wake the server."""
        os.eventfd_write(self._files[-1], 1)

    def waker(self, number: int) -> int:
        """The eventfd that a member sleeps on."""
        return self._files[1 + number]

    def try_lock(self) -> bool:
        """Take the lock of the memory, if it is free; it is this process's until `unlock`."""
        try:
            fcntl.lockf(self._files[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except OSError:
            return False
        return True

    def unlock(self) -> None:
        """Let go of the lock."""
        fcntl.lockf(self._files[0], fcntl.LOCK_UN, 1)

    def close(self) -> None:
        """Close the descriptors; the arrays stay until they are let go of."""
        files, self._files = self._files, ()
        for file in files:
            os.close(file)
