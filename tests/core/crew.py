"""What a crew of workers can do, at any time: each is one message to the server."""

from crew_account import Account
from slot_sets import piece_of

from distsgd.core.messages import Dropped, next_incarnation


class Crew(Account):
    """Workers around a server.

    Attributes:
        sent: leases that have been answered, with who did.
        log: what has been done, for the report of a failure.
    """

    def __init__(self, toy, promise):
        super().__init__(toy, promise)
        self.sent, self.log = [], []

    def join(self, worker):
        """Also of one that is here already, or was lost before."""
        self.log.append(("join", worker))
        if worker not in self.workers:
            self.workers.append(worker)
        self._carry_out(self.server.joined(worker))

    def lose(self, worker):
        self.log.append(("lose", worker))
        if worker in self.workers:
            self.workers.remove(worker)
            self._serials[worker] = next_incarnation(self._serials[worker])
            self._places.clear()
        self.waiting.pop(worker, None)
        self._give_up(worker)
        self._carry_out(self.server.lost(worker))

    def overdue(self, worker):
        """What it holds is offered to others; it stays."""
        self.log.append(("overdue", worker))
        self._give_up(worker)
        self._carry_out(self.server.overdue(worker))

    def pull(self, worker):
        """Also while waiting, while holding a lease, and without having joined."""
        self.log.append(("pull", worker))
        if worker not in self.workers:
            self.workers.append(worker)
        self._give_up(worker)
        self.waiting.setdefault(worker)
        self._carry_out(self.server.pull(worker))
        assert worker not in self.waiting or self.standing, "it waits for nobody"

    def push(self, worker, lease):
        """An answer comes, wanted or not."""
        self.log.append(("push", worker, tuple(lease)))
        piece = piece_of(lease)
        push = self.toy.answer(lease, self.reference.versions[lease.version])
        self.sent.append((worker, lease))
        if piece in self.standing and self.standing[piece][1].task == lease.task:
            holder, _ = self.standing.pop(piece)
            if holder != worker:
                self.given_up.append((holder, lease))
            self._pushed[piece] = worker, lease, push.losses
            self._arrived |= self._slots.of(lease)
            self._serials[worker] += 1
            decisions = self.server.push(worker, push, borrow=True)
            self._lent.setdefault(self._buffer(worker, lease), []).append(push.gradients)
            assert not any(isinstance(decision, Dropped) for decision in decisions)
        else:
            self.seen["dropped"] += 1
            decisions = self.server.push(worker, push)
            assert decisions == [Dropped(worker, lease)], "a push was used that nobody waits for"
        self._carry_out(decisions)

    def answer(self, number):
        """The holder of a lease that stands answers it."""
        worker, lease = list(self.standing.values())[number]
        self.push(worker, lease)
        return worker
