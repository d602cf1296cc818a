"""The server's side of a team, whose members are functions that write into its memory."""

from __future__ import annotations

import select
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.messages import Applied, Lease, Push
from distsgd.core.model import SlotLoss, initial_weights
from distsgd.core.server.consistency import make_policy
from distsgd.data.dataset import open_dataset
from distsgd.engine.events import Ended, EpochEnded, Event, Progress, Saved, UpdatedByTeam
from distsgd.engine.job import Job, Snapshot
from distsgd.engine.server_host import ServerHost
from distsgd.transport.base import Membership, Reply
from distsgd.transport.team_memory import (
    APPLIED,
    ARRIVED,
    BELL,
    HITS,
    LIMIT,
    PIECE_WORDS,
    REVOKED,
    TROUBLE,
    TURN,
    VERSION,
    WRITING,
    TeamMemory,
)

EPOCH = 8
"""Updates of an epoch; there are two."""


@pytest.fixture(scope="module")
def job() -> Job:
    config = TrainConfig(
        dataset="sample", epochs=2, batch_size=50, slot_size=25, log_every=3, optimizer="momentum"
    )
    found = make_job(config, open_dataset("sample"))
    return replace(found, plan=replace(found.plan, examples=EPOCH * 50))


@pytest.fixture(autouse=True)
def four_updates_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distsgd.engine.team_host.TeamHost._updates", lambda host: 4)


class Team:
    """A server, workers that are attached to it, and the team that it makes of them.

    W of version v, and the state of the optimiser, are full of v; losses are v as well.
    """

    def __init__(self, job: Job, workers: int = 2) -> None:
        start = Snapshot(0, initial_weights(0, job.classes, job.features, 1e-4, job.dtype), {})
        self.host, self.job = ServerHost(job, start, workers), job
        self.stacks: dict[int, ExitStack] = {}
        self.given: dict[int, list[Reply | None]] = {}
        self.answered: dict[int, Reply | None] = {}
        self.events: list[Event] = []
        for number in range(workers):
            self.come(number)
        self.version = 0
        for number in range(workers):
            self.ask(number)
        self.answer()

    def come(self, worker: int) -> None:
        """A worker that shares memory is connected."""
        self.given[worker] = []
        self.stacks[worker] = ExitStack()
        self.stacks[worker].enter_context(self.host.attached(worker, self.given[worker].append))

    def die(self, worker: int) -> None:
        """Its connection closes."""
        self.stacks.pop(worker).close()
        self.host.lost(worker, 1)

    def ask(self, worker: int) -> None:
        """A worker that has nothing to do; if it is in a team, it leaves."""
        self.host.submit(worker, None, 0)

    def answer(self) -> None:
        """All answer the leases that they hold: after that minibatch, they may be a team."""
        found = {number: replies[-1] for number, replies in self.given.items() if replies}
        for number, reply in found.items():
            if reply is self.answered.get(number) or not isinstance(reply, tuple):
                continue
            self.answered[number], lease = reply, self.lease(number)
            losses = tuple([SlotLoss(25.0, 1, 25)] * (lease.last - lease.first))
            gradients = np.zeros((1, self.job.parameters), self.job.dtype)
            self.host.submit(number, Push(lease, losses, gradients), gradients.nbytes)
        self.version = self.host._server.version

    @property
    def memory(self) -> TeamMemory:
        """Of the team that stands."""
        places = [place for replies in self.given.values() for place in replies[-1:]]
        found = [place.memory for place in places if isinstance(place, Membership)]
        return next(memory for memory in found if memory.files or not self.host._team.standing)

    def has_team(self, members: Sequence[int] = (0, 1)) -> bool:
        """Whether these are in a team, by what they have been given last."""
        places = [self.given[number][-1] for number in members if self.given[number]]
        return len(places) == len(members) and all(isinstance(p, Membership) for p in places)

    def lease(self, worker: int) -> Lease:
        reply = self.given[worker][-1]
        assert isinstance(reply, tuple) and isinstance(reply[0], Lease)
        return reply[0]

    def make(
        self,
        updates: int,
        makers: Sequence[Sequence[int]] | None = None,
        by: Sequence[int] | None = None,
    ) -> None:
        """The team makes some updates, as far as it may.

        Args:
            updates: how many.
            makers: of each piece the members that compute it; None for the one whose it is.
            by: the members that apply them; None for all.
        """
        memory, members = self.memory, range(self.memory.shape.members)
        makers = makers or [(piece,) for piece in members[:2]]
        for _ in range(updates):
            assert memory.words[LIMIT] > self.version and not memory.words[REVOKED]
            row = self.version % memory.shape.records
            self.version += 1
            memory.losses[:, row] = np.nan
            places = dict.fromkeys(members, 0)
            for piece, (maker, at) in (
                (piece, (maker, places[maker])) for piece, who in enumerate(makers) for maker in who
            ):
                places[maker] += 1
                memory.losses[maker, row, at] = self.version  # of one slot, and no more
                head = memory.heads[maker, row, PIECE_WORDS * piece :]
                head[:PIECE_WORDS] = (self.version, (at << 32) + 1, 1)
            for member in members:
                applies = by is None or member in by
                value = self.version if applies else np.nan
                memory.weights[member, self.version & 1] = value
                memory.states[member, :, self.version & 1] = value
                own = memory.member(member)
                for word in (ARRIVED, WRITING, APPLIED) if applies else (WRITING,):
                    memory.words[own + word] = self.version

    def take_turns(self, updates: int) -> None:
        """A team whose members do not wait for each other makes some updates."""
        memory = self.memory
        for number in range(updates):
            row = self.version % memory.shape.records
            turn = (number % memory.shape.members, self.version, self.version, number)
            memory.losses[0, row] = self.version + 1
            memory.heads[0, row, HITS], memory.heads[0, row, TURN] = 1, turn
            self.version += 1
            memory.weights[0, self.version & 1] = self.version
            memory.states[0, :, self.version & 1] = self.version
            memory.words[VERSION] = self.version

    def look(self) -> list[Event]:
        before = len(self.events)
        while found := self.host.events(0):
            self.events += found
        return self.events[before:]

    def of(self, kind: type[Event]) -> list[Event]:
        self.look()
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def made(self) -> list[int]:
        """The versions that the server knows of."""
        found: list[int] = []
        for event in self.of(UpdatedByTeam):
            assert isinstance(event, UpdatedByTeam)
            found += [update.version for update in event.stretch.updates()]
        return found


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def rings(bell: int) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def updates_of(team: Team) -> list[Applied]:
    """Those that the server has taken."""
    events = [event for event in team.of(UpdatedByTeam) if isinstance(event, UpdatedByTeam)]
    return [update for event in events for update in event.stretch.updates()]


def full_of(version: int, snapshot: Snapshot) -> bool:
    arrays = (snapshot.weights, *snapshot.state.values())
    return snapshot.version == version and all((array == version).all() for array in arrays)


def test_all_who_share_memory_are_a_team_after_their_first_minibatch(job: Job) -> None:
    team = Team(job, workers=2)
    assert team.has_team() and team.memory.words[LIMIT] == 5 and team.memory.words[BELL] == 3
    assert (team.memory.weights[:, 1] == team.host._server.weights).all(), "each has W of its own"


def test_a_team_goes_on_before_it_has_made_all(job: Job) -> None:
    team = Team(job)
    team.make(2)
    team.host.rung()
    assert team.memory.words[LIMIT] == 8 == team.memory.words[BELL], "the epoch ends there"
    team.make(4)
    assert team.made == [2, 3, 4, 5, 6, 7]
    team.make(1)
    team.host.rung()
    assert team.memory.words[LIMIT] == 12
    team.make(4)
    assert team.made == list(range(2, 13))
    progress = [(e.step, e.loss) for e in team.of(Progress) if isinstance(e, Progress)]
    assert progress == [
        (3, (25 + 2 + 3) * 2 / 150), (6, (4 + 5 + 6) * 2 / 150), (8, (7 + 8) * 2 / 100),
        (9, 9 * 2 / 50), (12, (10 + 11 + 12) * 2 / 150),
    ]  # fmt: skip


def test_the_end_of_an_epoch_and_of_all_have_their_weights(job: Job) -> None:
    team = Team(job)
    for updates in (4, 3, 4, 4):
        team.make(updates)
        team.host.rung()
    ends = [event.snapshot for event in team.of(EpochEnded) if isinstance(event, EpochEnded)]
    ends += [event.snapshot for event in team.of(Ended) if isinstance(event, Ended)]
    assert all(map(full_of, (EPOCH, 2 * EPOCH, 2 * EPOCH), ends)) and len(ends) == 3
    assert team.memory.words[REVOKED]
    team.ask(0)
    team.ask(1)
    assert team.given[0][-1] is None and team.given[1][-1] is None


@pytest.mark.parametrize("leaving", [0, 1, 2])
def test_an_epoch_that_ends_while_the_team_is_told_to_stop_has_its_weights(
    job: Job, leaving: int
) -> None:
    team = Team(job)
    team.make(4)
    team.host.rung()
    team.make(3)
    team.host.stop()
    for worker in range(leaving):
        team.ask(worker)
    (ended,) = team.of(EpochEnded)
    assert isinstance(ended, EpochEnded) and full_of(EPOCH, ended.snapshot)
    for worker in range(leaving, 2):
        team.ask(worker)
    (last,) = team.of(Ended)
    assert isinstance(last, Ended) and full_of(EPOCH, last.snapshot) and not last.finished


def test_a_team_that_is_granted_nothing_in_the_middle_rings_at_the_end(job: Job) -> None:
    team = Team(job)
    team.host._timed._next = 0.0  # a snapshot is due
    team.make(2)
    team.host.rung()
    assert team.memory.words[LIMIT] == 5 == team.memory.words[BELL]
    assert team.host.bell is not None and not rings(team.host.bell)
    team.make(2)
    team.host.rung()
    (saved,) = team.of(Saved)
    assert isinstance(saved, Saved) and full_of(5, saved.snapshot)
    assert team.memory.words[LIMIT] == 8


def test_a_team_that_comes_to_its_end_before_the_bell_is_moved_there_is_not_left_waiting(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    team = Team(job)
    team.make(2)
    extend = team.host._server.extend

    def refuse(updates: int, *, home: bool = False) -> object:
        team.make(2)
        return extend(updates, home=True) if home else None

    monkeypatch.setattr(team.host._server, "extend", refuse)
    team.host.rung()
    assert team.host.bell is not None and rings(team.host.bell)


def test_who_dies_after_leaving_is_given_no_work(job: Job) -> None:
    team = Team(job)
    team.make(3)
    team.ask(0)
    assert team.memory.words[REVOKED]
    given = len(team.given[0])
    team.die(0)
    team.ask(1)
    assert team.has_team((1,)) and team.memory.words[VERSION] == 4
    assert len(team.given[0]) == given and team.made == [2, 3, 4]


def test_who_dies_inside_is_not_waited_for(job: Job) -> None:
    team = Team(job, workers=3)
    team.make(1)
    team.die(2)
    team.ask(0)
    assert not isinstance(team.given[0][-1], tuple)
    del team.given[2]
    team.ask(1)
    assert [team.lease(worker).version for worker in (0, 1)] == [2, 2]
    assert team.made == [2] and (team.host._server.weights == 2).all()
    team.answer()
    assert team.has_team((0, 1)) and team.memory.shape.members == 2


@pytest.mark.parametrize("furthest", [0, 1])
def test_what_one_has_applied_was_made(job: Job, furthest: int) -> None:
    """W is that of the member that is furthest, even if it is the one that dies."""
    team = Team(job)
    team.make(1)
    team.make(1, by=(furthest,))
    team.die(1)
    team.ask(0)
    assert team.made == [2, 3] and (team.host._server.weights == 3).all()
    assert team.has_team((0,)) and team.memory.words[VERSION] == 3, "it is a team by itself"
    assert (team.memory.states == 3).any(axis=-1)[0, :, 1].all()


def test_what_nobody_has_applied_was_not_made(job: Job) -> None:
    team = Team(job)
    team.make(1)
    team.make(1, by=())
    team.die(1)
    team.ask(0)
    assert team.made == [2] and (team.host._server.weights == 2).all()


@pytest.mark.parametrize("furthest", [0, 1])
def test_a_team_that_waits_has_the_weights_of_its_furthest_member(job: Job, furthest: int) -> None:
    team = Team(job)
    team.host._timed._next = 0.0  # a snapshot is due at the end of what is granted
    team.make(3)
    team.make(1, by=(furthest,))
    team.host.rung()
    (saved,) = team.of(Saved)
    assert isinstance(saved, Saved) and full_of(5, saved.snapshot)
    assert team.memory.words[LIMIT] == 8 and not team.memory.words[REVOKED]


OWN = [(0,), (1,)]

MAKERS: dict[str, list[Sequence[int]]] = {
    "each its own": OWN,
    "one both": [(0,), (0,)],
    "the other both": [(1,), (1,)],
    "each the other's": [(1,), (0,)],
    "one both, and its owner, too": [(0,), (0, 1)],
    "everybody both": [(0, 1), (1, 0)],
}


@pytest.mark.parametrize("makers", MAKERS.values(), ids=MAKERS)
def test_a_piece_is_that_of_whoever_has_made_it(job: Job, makers: list[Sequence[int]]) -> None:
    """Of its owner, where it is so too. Other updates come before and after."""
    team = Team(job)
    team.make(1)
    team.make(2, makers)
    team.make(1)
    team.host.rung()
    found = updates_of(team)
    assert [update.version for update in found] == [2, 3, 4, 5]
    assert [update.loss for update in found] == [2 * n / 50 for n in (2, 3, 4, 5)]
    assert [update.correct for update in found] == [2] * 4
    expected = [piece if piece in who else who[0] for piece, who in enumerate(makers)]
    for update, workers in zip(found, ([0, 1], expected, expected, [0, 1]), strict=True):
        assert [worker for worker, _ in update.contributions] == workers
        assert [lease.first for _, lease in update.contributions] == [0, 1]


def test_an_older_record_is_no_record(job: Job) -> None:
    """Where another has made the piece, that of its owner is of as many updates before."""
    team = Team(job)
    team.make(1)
    memory = team.memory
    row = team.version % memory.shape.records
    memory.heads[1, row, PIECE_WORDS:] = -1
    memory.heads[1, row, PIECE_WORDS] = team.version + 1 - memory.shape.records
    team.make(1, [(0,), (0,)])
    *_, last = updates_of(team)
    assert [worker for worker, _ in last.contributions] == [0, 0] and last.correct == 2


@pytest.mark.parametrize("fences", [1, 2, 3])
def test_a_record_that_is_written_just_now_is_whole_or_none(
    job: Job, monkeypatch: pytest.MonkeyPatch, fences: int
) -> None:
    """A member that nobody waits for may write its record while the server reads."""
    team = Team(job)
    team.make(1, [(0,), (0,)])
    memory, seen = team.memory, list[int]()
    head = memory.heads[1, 1, PIECE_WORDS:]
    head[:] = -1

    def write() -> None:
        seen.append(1)
        if len(seen) == fences:
            memory.losses[1, 1, 0] = 2.0
            head[1:3] = 1, 1
            head[0] = 2

    monkeypatch.setattr("distsgd.engine.team_host.fence", write)
    (update,) = updates_of(team)
    assert [worker for worker, _ in update.contributions] == [0, int(fences < 3)]
    assert (update.loss, update.correct) == (2 * 2 / 50, 2)


def test_who_comes_later_is_in_the_next_team(job: Job) -> None:
    team = Team(job)
    team.make(1)
    team.come(2)
    team.ask(2)
    assert team.memory.words[REVOKED] and not team.given[2]
    team.ask(0)
    team.ask(1)
    while not team.has_team((0, 1, 2)):
        team.answer()
    assert team.memory.shape.members == 3 and team.version <= 4


def test_there_is_no_team_with_one_who_is_elsewhere(job: Job) -> None:
    team = Team(job)
    team.make(2)
    team.host.submit(2, None, 0)  # it calls, by TCP say
    team.ask(0)
    team.ask(1)
    team.answer()
    assert team.lease(0).step == 3 and not team.has_team()
    team.host.lost(2, 1)
    team.answer()
    team.answer()
    assert team.has_team()


def test_a_team_that_makes_nothing_is_revoked_and_who_hangs_is_left_behind(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("distsgd.engine.server_host.perf_counter", lambda: now[0])
    team = Team(job)
    team.make(1)
    team.look()
    now[0] += 0.9
    team.look()
    assert not team.memory.words[REVOKED]
    now[0] += 0.2
    team.look()
    assert team.memory.words[REVOKED]
    team.ask(0)
    assert team.host._team.standing, "it waits for the other"
    now[0] += 0.3
    team.look()
    assert not team.host._team.standing and team.lease(0).version == 2
    team.ask(1)
    assert team.lease(1).version == 2, "it is back, and has its part of what goes on"


@pytest.mark.parametrize("stands", [0, 1])
def test_a_member_that_does_not_move_while_others_go_on_is_left_behind(
    job: Job, monkeypatch: pytest.MonkeyPatch, stands: int
) -> None:
    now = [100.0]
    monkeypatch.setattr("distsgd.engine.server_host.perf_counter", lambda: now[0])
    monkeypatch.setattr("distsgd.engine.team_host._TIMES_LONGER", 1.0)
    team, other = Team(job), 1 - stands
    team.make(1)
    for _ in range(3):
        team.look()
        now[0] += 0.4
        assert not team.memory.words[REVOKED]
        team.make(1, [(other,), (other,)], by=(other,))
        team.host.rung()
    team.look()
    assert team.memory.words[REVOKED], "it has stood for over a second"
    team.ask(other)
    assert team.host._team.standing, "it waits for the other"
    now[0] += 0.3
    team.look()
    assert not team.host._team.standing and team.lease(other).version == 5
    assert team.made == [2, 3, 4, 5] and (team.host._server.weights == 5).all()


def test_a_member_that_moves_now_and_then_is_not_left_behind(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("distsgd.engine.server_host.perf_counter", lambda: now[0])
    monkeypatch.setattr("distsgd.engine.team_host._TIMES_LONGER", 1.0)
    team = Team(job)
    for number in range(8):
        now[0] += 0.4
        team.make(1, [(0,), (0,)], by=(0, 1) if number % 2 else (0,))
        team.host.rung()
        team.look()
        assert not team.memory.words[REVOKED]


def test_members_that_take_turns_do_not_have_to_move(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("distsgd.engine.server_host.perf_counter", lambda: now[0])
    monkeypatch.setattr("distsgd.engine.team_host._TIMES_LONGER", 1.0)
    team = Team(replace(job, policy=make_policy("asp")))
    assert team.has_team() and not team.memory.words[REVOKED], "they ask, and are one"
    for _ in range(5):
        now[0] += 0.8
        team.take_turns(1)
        team.host.rung()
        team.look()
        assert not team.memory.words[REVOKED]
    now[0] += 1.1
    team.look()
    assert team.memory.words[REVOKED], "it makes nothing"


def test_a_host_that_stood_still_does_not_blame_its_team(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("distsgd.engine.server_host.perf_counter", lambda: now[0])
    team = Team(job)
    team.look()
    now[0] += 60
    team.look()
    assert not team.memory.words[REVOKED]


def test_what_a_member_cannot_make_is_left_to_the_server(job: Job) -> None:
    team = Team(job)
    team.make(1)
    team.memory.words[TROUBLE] = 3
    team.host.rung()
    assert team.memory.words[REVOKED] and team.made == [2]


def test_without_memory_for_a_team_there_is_none(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int) -> int:
        raise OSError("no memory")

    monkeypatch.setattr("distsgd.transport.team_memory.anonymous_file", refuse)
    team = Team(job)
    assert [team.lease(worker).piece for worker in (0, 1)] == [(1, 0, 1), (1, 1, 2)]
    team.answer()
    assert [team.lease(worker).piece for worker in (0, 1)] == [(2, 0, 1), (2, 1, 2)]


def test_the_descriptors_of_a_team_are_closed_with_it(job: Job) -> None:
    before = open_files()
    team = Team(job)
    for _ in range(5):
        assert team.has_team()
        team.ask(0)
        team.ask(1)
        team.answer()
    team.host.stop()
    team.ask(0)
    team.ask(1)
    for replies in team.given.values():
        replies.clear()
    assert open_files() <= before + 1, "one is the bell"
