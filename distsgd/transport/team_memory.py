"""Memory that a team shares: W twice, the sums of its members, and words that order their use.

It is one sealed anonymous file, made by the server and mapped by every member:

    control     one word a cache line: limit, revoked, bell, trouble, version, step, ticket
    members     for each member four lines: arrived | applied | asleep | serial, waited
    weights     W twice: version v is in copy v mod 2
    states      each array of the optimiser twice, likewise
    sums        for each member the sums of its slots, a row each
    records     for each member a ring of records, one an update: hits, then the loss of each slot

Where members wait for each other, an update, from version v to v + 1, takes each member through
these words, in this order:

    1  v < limit, and not revoked           may it begin
    2  sums, record                         computed at copy v mod 2
    3  arrived = v + 1                      ... are there
    4  all have arrived at v + 1            wait
    5  its own range of copy v + 1 mod 2    old range, sums of all, update rule
    6  applied = v + 1                      ... is there
    7  all have applied v + 1               wait

Why nobody reads what is being written: copy v + 1 mod 2 held version v - 1. It is written in 5,
when all have arrived at v + 1, so all have computed at v, so all have found in 7 that v is whole,
and nobody reads v - 1 any more. Sums are written in 2 of the next update, when all have applied
v + 1 and need them no more. So at any moment, whatever has died or been stopped, the smallest
`applied` is a version that is whole, and nobody is writing to its copy. A member that wakes up late
can do no more than finish 5 and 6: for the next update it would need the others, who have left.

Where they do not (`asp`), each update is that of one member, in its turn: under a lock it applies
its sums to all of the other copy, writes a record into the first ring (hits, member, step, version
read, serial, losses), stores version = v + 1, takes the number of its next update (ticket), and
copies W for itself. The lock is one of the file (POSIX, `fcntl.lockf`), which the system takes from
a process that dies. A member that is stopped inside it can finish one version later, into the copy
that nobody else uses; the server goes by the version that it has read.

Order of the stores: a word is one aligned store of eight bytes, after all that it announces. On x86
stores become visible in their order, and loads are done in theirs, so that is enough. Elsewhere
(Arm) `fence` stands between the two on either side. Going to sleep needs more, on every processor:
the sleeper stores `asleep` and then loads the word it waits for, the other stores that word and
then loads `asleep`; with `fence` between each store and load, one of the two sees the other's.
`fence` is an atomic read-modify-write on x86, which is a full barrier; elsewhere a call of
sched_yield, in which the kernel passes one (`smp_mb__after_spinlock` in its `__schedule`). A
sleeper also looks again after `NAP_SECONDS` by itself.

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
    "HITS",
    "LIMIT",
    "NAP_SECONDS",
    "ORDERED",
    "REVOKED",
    "SERIAL",
    "STEP",
    "TICKET",
    "TROUBLE",
    "TURN",
    "VERSION",
    "WAITED",
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

HITS, TURN = 0, slice(1, 5)
"""Words of a record: examples classified rightly; in turns, member, step, version read, serial."""

_HEAD_WORDS = 8
_CONTROL_LINES, _MEMBER_LINES = 7, 4
ARRIVED, APPLIED, ASLEEP = (n * _WORDS for n in range(3))
SERIAL, WAITED = (3 * _WORDS + n for n in range(2))
"""The words of a member, from its first on: how far it is; what it sleeps for, or 0; the serial of
its first answer; nanoseconds it has waited."""


def sleeping_for(kind: int, version: int) -> int:
    """The word `ASLEEP` of a member that sleeps until a kind of word reaches a version."""
    return (version << 10) + kind + 1


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
        rows: sums that a member has at most.
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
        return (_CONTROL_LINES + _MEMBER_LINES * self.members) * _WORDS

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector of the length of W, a whole number of cache lines."""
        return row_bytes(self.parameters, self.dtype)

    @property
    def vectors(self) -> int:
        """How many such vectors there are."""
        return 2 * (1 + self.states) + self.members * self.rows

    @property
    def record_words(self) -> int:
        """Words of a record, a whole number of cache lines."""
        return _HEAD_WORDS + -(-self.losses // _WORDS) * _WORDS

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
        weights: both copies of flat W, shape (2, parameters).
        states: of each array of the optimiser both copies, shape (states, 2, parameters).
        sums: of each member, shape (members, rows, parameters).
        losses: of each record, shape (members, records, losses), float64.
        heads: of each record, what precedes them, int64: see `HITS` and `TURN`.
    """

    def __init__(self, file: int, wakers: Sequence[int], shape: TeamShape) -> None:
        self._files = (file, *wakers)
        self.shape = shape
        self._memory = memory = mmap.mmap(file, shape.size)
        self.words = memoryview(memory)[: shape.control_words * 8].cast("q")
        start = shape.control_words * 8
        rows = np.frombuffer(
            memory, np.dtype(shape.dtype), offset=start,
            count=shape.vectors * shape.vector_bytes // np.dtype(shape.dtype).itemsize,
        ).reshape(shape.vectors, -1)[:, : shape.parameters]  # fmt: skip
        self.weights: Floats = rows[:2]
        own = 2 * (1 + shape.states)
        self.states: Floats = rows[2:own].reshape(shape.states, 2, -1) if shape.states else rows[:0]
        self.sums = [rows[low : low + shape.rows] for low in range(own, len(rows), shape.rows)]
        start += shape.vectors * shape.vector_bytes
        count = shape.members * shape.records * shape.record_words
        records = np.frombuffer(memory, np.int64, offset=start, count=count)
        records = records.reshape(shape.members, shape.records, shape.record_words)
        self.heads: NDArray[np.int64] = records[:, :, :_HEAD_WORDS]
        last = _HEAD_WORDS + shape.losses
        self.losses: NDArray[np.float64] = records.view(np.float64)[:, :, _HEAD_WORDS:last]

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
        return (_CONTROL_LINES + _MEMBER_LINES * number) * _WORDS

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
