"""The workers of one node as one worker: they share a lease of a server on another node.

One of them leads. It alone has a channel to the server, which sees one worker: it gets W and a
piece of a minibatch, and sends the sums of that piece, as any worker does. The others connect to
the leader as if it were their server, by memory that they share. So W and the sums cross the
network once for a node, whatever the number of its workers.

    server                    leader                     members
      |  lease [4, 8), W        |                           |
      |------------------------>|  lease [6, 8), W          |
      |                         |-------------------------->|
      |                         |  computes [4, 6)          |  computes [6, 8)
      |                         |  sums of [6, 8)           |
      |                         |<--------------------------|
      |  sums of [4, 8)         |  adds along the tree
      |<------------------------|

What is sent are the sums of the same nodes of the same reduction tree, so no bit depends on it.
If a member dies or is late, another, or the leader, computes its part. If the leader dies, the
server gives its piece to others, and its members find their connections closed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import perf_counter

from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease, Message, Push, ResidualRequest
from distsgd.core.model import SlotLoss
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import TreeSum, cover, shares
from distsgd.engine.lease_times import HANG_SECONDS, LeaseTimes
from distsgd.engine.pending_replies import PendingReplies
from distsgd.errors import ChannelClosed
from distsgd.transport.base import Answer, Channel, Membership, Reply, Work

__all__ = ["NodeTeam"]

_LOOK_SECONDS = 0.25
"""How often the leader looks whether a member is late, while it waits for its answer."""

Range = tuple[int, int]


class NodeTeam:
    """The leader's part: a `Channel` for its own worker, a `ServerPort` for the members.

    Args:
        channel: to the server.
        leader: number of the worker on this end of it.
        plan: the slots of each step.
        parameters: length of flat W.
        dtype: its dtype.
        hang_seconds: least time after which a member is considered to hang.
        hung: told the number of a member that hangs.
    """

    buffer: Floats | None = None
    descriptor: int | None = None
    bell: int | None = None

    def __init__(
        self,
        channel: Channel,
        leader: int,
        plan: Plan,
        parameters: int,
        dtype: str,
        hang_seconds: float = HANG_SECONDS,
        hung: Callable[[int], None] = lambda worker: None,
    ) -> None:
        self.name = channel.name
        self._channel, self._leader, self._plan, self._hung = channel, leader, plan, hung
        lock = threading.RLock()
        self._lock = lock
        self._changed = threading.Condition(lock)  # the leader's own worker
        self._replies = PendingReplies(threading.Condition(lock))
        self._times = LeaseTimes(hang_seconds)
        self._sum = TreeSum(plan.most_slots, parameters, dtype)
        self._work: Work | None = None  # what the server has leased, until it is answered
        self._todo: set[Range] = set()  # parts of it whose sums have not come
        self._free: deque[Range] = deque()  # those of them that nobody computes
        self._out: dict[int, Range] = {}  # worker -> the part it computes
        self._losses: dict[Range, tuple[SlotLoss, ...]] = {}
        self._waiting: set[int] = set()  # members
        self._dead: dict[int, int] = {}  # member -> the latest incarnation that has died
        self._asked = self._over = False
        self._failure: ChannelClosed | None = None

    def send(self, message: Message | None) -> None:
        """Take what the leader's own worker has computed; see `Channel.send`."""
        if isinstance(message, Push):
            with self._lock:
                self._take(self._leader, message)

    def receive(self) -> Reply | None:
        """The next part for the leader's own worker; see `Channel.receive`."""
        with self._lock:
            while self._work is not None:
                if self._free:
                    return self._own(self._free.popleft())
                self._changed.wait(_LOOK_SECONDS)
                self._look()
            if self._failure is not None:
                raise self._failure
            if not self._asked:
                self._asked = True
                self._channel.send(None)
        reply = self._channel.receive()  # members may come and go meanwhile
        with self._lock:
            if reply is None:
                self._dismiss()
                return None
            # Nothing is compressed, and no memory shared with the server.
            assert not isinstance(reply, ResidualRequest | Membership)
            return self._begin(*reply)

    def rung(self) -> None:
        """There is no bell: members have no standing lease."""

    def exchange(self, worker: int, message: Message | None, size: int) -> Answer | None:
        """A member that does not share memory; see `ServerPort.exchange`."""
        return self._replies.exchange(worker, lambda: self.submit(worker, message, size))

    def submit(self, worker: int, message: Message | None, size: int) -> None:
        """A member answers, or asks for work; see `ServerPort.submit`."""
        with self._lock:
            now = perf_counter()
            self._replies.ask(worker, now)
            self._times.answered(worker, now)
            if isinstance(message, Push):
                self._take(worker, message)
            self._release(worker)
            if self._over:
                self._replies.put(worker, None)
                return
            self._waiting.add(worker)
            self._hand_out()

    def attached(
        self, worker: int, give: Callable[[Reply | None], None]
    ) -> AbstractContextManager[None]:
        """See `ServerPort.attached`."""
        return self._replies.attached(worker, give)

    def arrived(self, worker: int, incarnation: int) -> None:
        """See `ServerPort.arrived`."""
        self.lost(worker, incarnation - 1)

    def lost(self, worker: int, incarnation: int) -> None:
        """A member is dead; its part goes to another. See `ServerPort.lost`."""
        with self._lock:
            if incarnation <= self._dead.get(worker, 0):
                return
            self._dead[worker] = incarnation
            self._waiting.discard(worker)
            self._replies.gone(worker)
            self._times.lost(worker)
            self._release(worker)
            self._hand_out()

    def refused(self, where: str) -> None:
        """Strangers are turned away, and the training does not depend on them."""

    def _begin(self, lease: Lease, weights: Floats) -> Work:
        """Cut a lease for the leader and the members that wait; returns the leader's part."""
        self._work = lease, weights
        self._sum.start(self._plan.slots(lease.step))
        self._asked = False
        self._losses.clear()
        crew = [self._leader, *sorted(self._waiting)]
        cuts = shares(lease.last - lease.first, len(crew))
        parts = [(lease.first + low, lease.first + high) for low, high in cuts]
        self._todo.update(parts)
        for member, part in zip(crew[1:], parts[1:], strict=False):  # with few slots some wait
            self._grant(member, part)
        self._out[self._leader] = parts[0]
        return self._part(parts[0])

    def _part(self, part: Range) -> Work:
        assert self._work is not None
        lease, weights = self._work
        return lease._replace(first=part[0], last=part[1]), weights

    def _grant(self, member: int, part: Range) -> None:
        work = self._part(part)
        self._waiting.remove(member)
        self._out[member] = part
        self._replies.put(member, work)
        self._times.granted(member, work[0], perf_counter())

    def _own(self, part: Range) -> Work:
        """One more part for the leader, whose sums of the last are about to be overwritten."""
        self._sum.settle()
        self._out[self._leader] = part
        return self._part(part)

    def _hand_out(self) -> None:
        """Give free parts to members that wait; the leader takes what is left of them."""
        for member in sorted(self._waiting):
            if not self._free:
                return
            self._sum.settle()
            self._grant(member, self._free.popleft())
        self._changed.notify_all()

    def _take(self, worker: int, push: Push) -> None:
        """Use the sums of a part, the first time they come, and answer the server with the last."""
        lease = push.lease
        part = lease.first, lease.last
        if part not in self._todo or self._part(part)[0] != lease:
            return
        nodes = cover(*part, self._plan.slots(lease.step))
        if len(push.losses) != lease.last - lease.first or len(push.gradients) != len(nodes):
            return
        if self._out.get(worker) == part:
            del self._out[worker]
        self._todo.remove(part)
        if part in self._free:
            self._free.remove(part)
        self._losses[part] = push.losses
        for node, vector in zip(nodes, push.gradients, strict=True):
            self._sum.add(node, vector, borrow=True)
        if not self._todo:
            self._answer()

    def _answer(self) -> None:
        """All parts are there: send the server what it has leased."""
        assert self._work is not None
        lease, _ = self._work
        losses = tuple(loss for _, part in sorted(self._losses.items()) for loss in part)
        nodes = cover(lease.first, lease.last, self._plan.slots(lease.step))
        self._asked = True
        try:
            self._channel.send(Push(lease, losses, self._sum.sums(nodes)))
        except ChannelClosed as error:  # for the leader's worker, not for the member that came last
            self._failure = error
        self._work = None
        self._changed.notify_all()

    def _release(self, worker: int) -> None:
        """A part that a worker has had, and has not answered, is free."""
        part = self._out.pop(worker, None)
        if part in self._todo and part not in self._free and part not in self._out.values():
            self._free.append(part)

    def _look(self) -> None:
        """Have others compute what is overdue, and tell of members that hang."""
        now = perf_counter()
        for member in self._times.overdue(now):
            self._release(member)
        self._hand_out()
        for member in self._times.hung(now):
            self._hung(member)

    def _dismiss(self) -> None:
        """There is no more work."""
        self._over = True
        for member in self._waiting:
            self._replies.put(member, None)
        self._waiting.clear()
