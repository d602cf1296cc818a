"""The workers of a node as one: the same bits, whoever of them dies, is late, or comes and goes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from support import PATIENCE

from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease, Message, Push
from distsgd.core.model import SlotLoss, initial_weights
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import cover, sum_node
from distsgd.data.dataset import Dataset
from distsgd.engine import lease_times
from distsgd.engine.events import Ended, Hung, Updated
from distsgd.engine.job import Job, Snapshot
from distsgd.engine.node_team import NodeTeam
from distsgd.engine.server_host import ServerHost
from distsgd.engine.worker import Worker, work
from distsgd.errors import ChannelClosed
from distsgd.runs.checkpoint import weights_sha256
from distsgd.training import train
from distsgd.transport.base import InProcessChannel, Reply
from distsgd.transport.connections import SharedMemoryChannel
from distsgd.transport.framing import Shape
from distsgd.transport.port import Port

SLOTS, SIZE, LEADER = 13, 6, 4
PLAN = Plan(
    sampling="sequential", seed=0, examples=SLOTS * 3, epochs=5, batch_size=SLOTS * 3, slot_size=3
)


class Upstream:
    """A channel to a server that leases one piece after the other, and keeps the answers."""

    name, buffer = "tcp", None

    def __init__(self, *pieces: tuple[int, int]) -> None:
        self._leases = [
            Lease(step, first, last, step, serial=step) for step, (first, last) in enumerate(pieces)
        ]
        self._weights = np.zeros(SIZE, np.float32)
        self.asked = 0
        self.answers: list[Push] = []
        self.closed = False

    def send(self, message: Message | None) -> None:
        if self.closed:
            raise ChannelClosed("the peer of a channel has gone")
        self.asked += 1
        if isinstance(message, Push):
            self.answers.append(message._replace(gradients=message.gradients.copy()))

    def receive(self) -> Reply | None:
        assert self.asked == 1, "one question, one answer"
        self.asked = 0
        if not self._leases:
            return None
        self._weights[:] = self._leases[0].step
        return self._leases.pop(0), self._weights


def leaf(step: int, slot: int) -> Floats:
    random = np.random.default_rng((step, slot))
    scale = 10.0 ** random.integers(-3, 4)
    return (random.standard_normal(SIZE) * scale).astype(np.float32)


def answer(lease: Lease, into: Floats | None = None) -> Push:
    """As a worker would; in a buffer that it will use again."""
    leaves = np.stack([leaf(lease.step, slot) for slot in range(lease.first, lease.last)])
    if into is not None:
        into[: len(leaves)] = leaves
        leaves = into
    nodes = cover(lease.first, lease.last, SLOTS)
    for node in nodes:
        sum_node(node, leaves, lease.first, SLOTS)
    places = [node.first - lease.first for node in nodes]
    sums = leaves[places] if len(places) > 1 else leaves[:1]
    losses = tuple(SlotLoss(float(slot), 0, 3) for slot in range(lease.first, lease.last))
    return Push(lease, losses, sums)


def assert_same(got: Push, lease: Lease) -> None:
    wanted = answer(lease)
    assert (got.lease, got.losses) == (wanted.lease, wanted.losses)
    assert np.array_equal(got.gradients, wanted.gradients)


class Crew:
    """A team whose workers are function calls, each with a buffer that it uses again.

    The members share memory as far as the team can tell: W is read when they are given it.
    """

    def __init__(self, upstream: Upstream, members: int, hang_seconds: float = 10.0) -> None:
        self.hung: list[int] = []
        self.team = NodeTeam(
            upstream, LEADER, PLAN, SIZE, "float32", hang_seconds, self.hung.append
        )
        self.stack = ExitStack()
        self.given: dict[int, list[Lease | None]] = {}
        self._buffers = {LEADER: np.empty((SLOTS, SIZE), np.float32)}
        for member in range(LEADER + 1, LEADER + 1 + members):
            self.join(member)

    def join(self, member: int, incarnation: int = 1) -> None:
        self.given[member] = []
        self._buffers[member] = np.empty((SLOTS, SIZE), np.float32)
        self.team.arrived(member, incarnation)
        self.stack.enter_context(self.team.attached(member, self._giver(member)))
        self.team.submit(member, None, 0)

    def _giver(self, member: int) -> Callable[[Reply | None], None]:
        def give(reply: Reply | None) -> None:
            if reply is None:
                self.given[member].append(None)
                return
            lease, weights = reply
            assert isinstance(lease, Lease) and (weights == lease.version).all()
            self.given[member].append(lease)

        return give

    def lead(self) -> Lease | None:
        """What the leader's worker is to do next."""
        received = self.team.receive()
        if received is None:
            return None
        lease, weights = received
        assert isinstance(lease, Lease) and (weights == lease.version).all()
        return lease

    def push(self, lease: Lease | None, member: int = LEADER) -> None:
        assert lease is not None
        push = answer(lease, self._buffers[member])
        if member == LEADER:
            self.team.send(push)
        else:
            self.team.submit(member, push, 0)

    def has(self, member: int) -> Lease:
        lease = self.given[member][-1]
        assert lease is not None
        return lease


@pytest.mark.parametrize("members", [0, 1, 2, 7])
@pytest.mark.parametrize("piece", [(0, SLOTS), (0, 8), (5, 12), (8, SLOTS), (3, 4)])
def test_the_server_gets_the_sums_of_one_worker(piece: tuple[int, int], members: int) -> None:
    """Whoever comes first, and whoever has nothing to do."""
    upstream = Upstream(*[piece] * 5)
    crew = Crew(upstream, members)
    random = np.random.default_rng(members)
    for step in range(5):
        parts = {LEADER: crew.lead()}
        parts |= {
            member: lease
            for member in crew.given
            if crew.given[member] and (lease := crew.has(member)).step == step
        }
        covered = sorted(lease.piece[1:] for lease in parts.values() if lease is not None)
        assert [covered[0][0], covered[-1][1]] == [*piece]
        for member in random.permutation(sorted(parts)).tolist():
            assert len(upstream.answers) == step
            crew.push(parts[member], member)
        assert_same(upstream.answers[-1], Lease(step, *piece, step, serial=step))
    assert crew.lead() is None
    assert all(given[-1] is None for given in crew.given.values())


@pytest.mark.parametrize("after", [False, True], ids=["the leader last", "the leader first"])
def test_the_part_of_a_member_that_dies_is_computed_by_others(after: bool) -> None:
    upstream = Upstream((0, 12), (0, 12))
    crew = Crew(upstream, 2)
    own = crew.lead()
    if after:
        crew.push(own)
    crew.push(crew.has(6), 6)
    dead = crew.has(5)
    crew.team.lost(5, 1)
    crew.team.lost(5, 1)
    again = crew.has(6)
    assert again == dead, "to the one that waits"
    crew.team.lost(6, 1)
    if not after:
        crew.push(own)
    assert crew.lead() == dead, "to the leader, as nobody is left"
    crew.push(dead)
    assert_same(upstream.answers[0], Lease(0, 0, 12, 0))
    assert crew.lead() == Lease(1, 0, 12, 1, serial=1), "all of it"


def test_a_member_takes_its_number_again_and_one_joins_in_the_middle() -> None:
    upstream = Upstream((0, 12), (0, 12))
    crew = Crew(upstream, 1)
    own, dead = crew.lead(), crew.has(5)
    crew.join(5, incarnation=2)
    crew.team.lost(5, 1)  # late news of the one before
    crew.join(6)
    assert crew.has(5) == dead and not crew.given[6]
    crew.push(own)
    crew.push(crew.has(5), 5)
    assert_same(upstream.answers[0], Lease(0, 0, 12, 0))
    crew.lead()
    assert [crew.has(member).piece for member in (5, 6)] == [(1, 4, 8), (1, 8, 12)]


def test_an_answer_to_another_lease_is_not_used() -> None:
    upstream = Upstream((0, 12), (0, 12), (0, 8))
    crew = Crew(upstream, 1)
    own, first = crew.lead(), crew.has(5)
    crew.push(own)
    crew.push(own)
    for wrong in (first._replace(step=1), first._replace(serial=3), first._replace(last=11)):
        crew.push(wrong, 5)
        assert crew.has(5) == first and not upstream.answers
    push = answer(first)
    crew.team.submit(5, push._replace(losses=push.losses[1:]), 0)
    crew.team.submit(5, push._replace(gradients=np.concatenate([push.gradients] * 2)), 0)
    crew.push(first, 5)
    assert_same(upstream.answers[0], Lease(0, 0, 12, 0))
    crew.lead()
    crew.push(first, 5)
    assert crew.has(5).step == 1 and len(upstream.answers) == 1


def test_a_member_that_is_late_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader computes its part too; the first answer counts; who hangs is told of."""
    monkeypatch.setattr(lease_times, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(lease_times, "_TIMES_LONGER", 0.0)
    monkeypatch.setattr(lease_times, "_TIMES_HUNG", 0.0)
    upstream = Upstream(*[(0, 12)] * 4)
    crew = Crew(upstream, 1, hang_seconds=0.0)
    own, part = crew.lead(), crew.has(5)
    crew.push(own)
    crew.push(part, 5)  # so that the time of a slot is known
    own, part = crew.lead(), crew.has(5)
    crew.push(own)
    assert crew.lead() == part and crew.hung == [5]
    crew.push(part, 5)
    assert len(upstream.answers) == 2
    crew.push(part)  # too late now
    own, part = crew.lead(), crew.has(5)
    assert own is not None and own.step == 2
    crew.push(own)
    crew.push(crew.lead())
    own = crew.lead()
    assert own == Lease(3, 0, 12, 3, serial=3), "a member that does not wait has no part"
    crew.push(part, 5)
    crew.push(own)
    for step, push in enumerate(upstream.answers):
        assert_same(push, Lease(step, 0, 12, step, serial=step))


def test_the_end_of_the_server_is_the_leaders_not_a_members() -> None:
    upstream = Upstream((0, 12))
    crew = Crew(upstream, 1)
    crew.push(crew.lead())
    upstream.closed = True
    crew.push(crew.has(5), 5)
    with pytest.raises(ChannelClosed):
        crew.lead()


# With real workers and the real server.


def job_of(sample: Dataset) -> Job:
    return make_job(TrainConfig(dataset="sample", epochs=2, batch_size=200, slot_size=30), sample)


def start_of(job: Job) -> Snapshot:
    return Snapshot(0, initial_weights(0, job.classes, job.features, 1e-4, job.dtype), {})


@contextmanager
def door(team: NodeTeam, job: Job) -> Iterator[Callable[[int], SharedMemoryChannel]]:
    """Where members connect, over sockets and memory as between processes."""
    slots = job.plan.most_slots
    shape = Shape(job.parameters, job.dtype, slots, slots, job.parameters)
    port = Port(team, shape, lambda payload, rows: np.zeros((rows, job.parameters)))
    yield lambda number: SharedMemoryChannel(port.address, number, shape)
    port.close()


def test_two_nodes_give_the_bits_of_one_process(sample: Dataset) -> None:
    """Two workers beside the server, and a team of three that it takes for one."""
    job = job_of(sample)
    host = ServerHost(job, start_of(job), 5)
    team = NodeTeam(InProcessChannel(host, 2), 2, job.plan, job.parameters, job.dtype)
    for member in (3, 4):
        host.lost(member, 1)
    host.node_teams({2: 3})
    with door(team, job) as connect:
        channels = [InProcessChannel(host, 0), InProcessChannel(host, 1), team]
        threads = [
            threading.Thread(target=work, args=(Worker(job), channel), daemon=True)
            for channel in [*channels, connect(3), connect(4)]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    events = []
    while not (events and isinstance(events[-1], Ended)):
        events += host.events(0)
    ended = events[-1]
    assert isinstance(ended, Ended)
    alone = train("sample", workers=0, epochs=2, batch_size=200, slot_size=30)
    assert weights_sha256(job.architecture.unpad(ended.snapshot.weights)) == alone.weights_sha256
    updates = [event.update for event in events if isinstance(event, Updated)]
    who = [{worker: lease.piece[1:] for worker, lease in one.contributions} for one in updates]
    assert set().union(*who) == {0, 1, 2}
    assert (0, 4) in {pieces.get(2) for pieces in who}, "four of seven slots for three of five"


def test_who_hangs_in_a_team_is_told_to_the_driver(sample: Dataset) -> None:
    job = job_of(sample)
    host = ServerHost(job, start_of(job), 2)
    host.hangs(1)
    assert Hung((1,)) in host.events(0)
