"""Workers of a team that die or stop at each word of its protocol, in processes of their own."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from itertools import product

import pytest
from team_processes import Fail, Nursery, Training, job_and_start

from distsgd.engine.events import UpdatedByTeam
from distsgd.engine.job import Job, Snapshot
from distsgd.engine.team import HELP_WORDS, WORDS
from distsgd.engine.team_turns import TURN_WORDS

THREE = pytest.param(3, marks=pytest.mark.thorough)


def points(workers: int, words: Sequence[str] = WORDS) -> list[tuple[str, int]]:
    """Each word of each member; the first rings for all."""
    return [
        (word, member) for word, member in product(words, range(workers))
        if word != "bell" or member == 0
    ]  # fmt: skip


@pytest.fixture(scope="module")
def long() -> tuple[Job, Snapshot]:
    """More updates than it takes to fail everywhere."""
    return job_and_start(
        epochs=10_000, batch_size=40, slot_size=10, optimizer="momentum", schedule="constant",
        log_every=1000,
    )  # fmt: skip


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that is stopped stays in its team, however busy the machine is."""
    monkeypatch.setattr("distsgd.engine.team_host._OVERDUE_SECONDS", 1000.0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that does not go on is soon found to hang."""
    monkeypatch.setattr("distsgd.engine.team_host._OVERDUE_SECONDS", 0.05)
    monkeypatch.setattr("distsgd.engine.team_host._LEAVING_SECONDS", 0.02)


@pytest.mark.parametrize("workers", [2, THREE])
def test_a_member_that_is_killed_at_any_word_loses_nothing(
    births: Nursery, long: tuple[Job, Snapshot], workers: int
) -> None:
    with Training(births, *long, workers) as training:
        training.begin()
        for word, member in points(workers):
            training.kill(member)
            training.bear(member, Fail(word, members=workers))
            training.wait(member, "X")
            training.bear(member)
        training.until(training.version + 50)
        training.host.stop()
        training.check()
        assert len(training.updates_by_team) > 3 * len(points(workers))


@pytest.mark.parametrize("workers", [2, THREE])
def test_a_member_that_stops_at_any_word_and_goes_on_later_spoils_nothing(
    births: Nursery, long: tuple[Job, Snapshot], workers: int, impatient: None
) -> None:
    with Training(births, *long, workers) as training:
        training.begin()
        for number, (word, member) in enumerate(points(workers)):
            training.kill(member)
            training.bear(member, Fail(word, signal=signal.SIGSTOP, members=workers))
            training.wait(member, "T")
            training.until(training.version + number % 4)
            training.kill(member, signal.SIGCONT)
        training.until(training.version + 50)
        training.host.stop()
        training.check()
        assert len(training.updates_by_team) > 3 * len(points(workers))


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_member_that_fails_while_it_helps_or_catches_up_spoils_nothing(
    births: Nursery, long: tuple[Job, Snapshot], patient: None, what: int
) -> None:
    fallen = "X" if what == signal.SIGKILL else "T"
    with Training(births, *long, 2) as training:
        training.begin()
        for word, member in product(HELP_WORDS, range(2)):
            training.kill(member)
            training.bear(member, Fail(word, signal=what))
            training.wait_for(
                lambda one=member: training.state(one) == fallen or training.is_inside(one)
            )
            away = 1 - member if word in ("helping", "helped") else member
            if training.state(member) != fallen:  # it may have helped by chance
                training.kill(away, signal.SIGSTOP)
                training.wait(away, "T")
                if away == member:
                    training.until(training.version + 10)
                    training.kill(member, signal.SIGCONT)
                training.wait(member, fallen)
                training.kill(1 - member, signal.SIGCONT)
            if what == signal.SIGSTOP:
                training.until(training.version + 4)
                training.kill(member, signal.SIGCONT)
            else:
                training.bear(member)
        training.until(training.version + 50)
        training.host.stop()
        training.check()


def test_a_team_goes_on_beside_a_member_that_is_stopped(
    births: Nursery, long: tuple[Job, Snapshot]
) -> None:
    """Without being revoked: the other computes its pieces, too, and the journal says so."""
    with Training(births, *long, 2) as training:
        training.begin()
        training.wait_for_teams(2)
        training.wait_for(lambda: training.is_inside(0) and training.is_inside(1))
        training.kill(1, signal.SIGSTOP)
        training.wait(1, "T")
        training.look()
        known, before = len(training.events), training.version
        training.until(before + 30)
        training.kill(1, signal.SIGCONT)
        made = [event for event in training.events[known:] if isinstance(event, UpdatedByTeam)]
        alone = [update for event in made for update in event.stretch.updates()
                 if [worker for worker, _ in update.contributions] == [0, 0]]  # fmt: skip
        assert len(alone) >= 20
        training.until(training.version + 50)
        training.host.stop()
        training.check()


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_member_that_fails_in_its_turn_spoils_nothing(
    births: Nursery, impatient: None, what: int
) -> None:
    """Of a team whose members do not wait for each other."""
    job, start = job_and_start(
        epochs=10_000, batch_size=40, slot_size=10, optimizer="momentum", schedule="constant",
        log_every=1000, consistency="asp",
    )  # fmt: skip
    with Training(births, job, start, 2) as training:
        training.begin()
        for number, (word, member) in enumerate(points(2, TURN_WORDS)):
            training.kill(member)
            training.bear(member, Fail(word, signal=what))
            training.wait(member, "X" if what == signal.SIGKILL else "T")
            training.until(training.version + number % 4)
            if what == signal.SIGKILL:
                training.bear(member)
            else:
                training.kill(member, signal.SIGCONT)
        training.until(training.version + 50)
        training.host.stop()
        training.check()
        assert len(training.updates_by_team) > 3 * len(points(2, TURN_WORDS))


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("workers", [2, 3])
def test_members_that_die_and_stop_at_random_spoil_nothing(
    births: Nursery, long: tuple[Job, Snapshot], impatient: None, workers: int, seed: int
) -> None:
    chance = random.Random(seed)
    with Training(births, *long, workers) as training:
        training.begin()
        for _ in range(100):
            member = chance.randrange(workers)
            match chance.choice(("kill", "stop", "go on", "go on")):
                case "kill":
                    training.kill(member)
                    kind = chance.choice((signal.SIGKILL, signal.SIGSTOP))
                    fail = Fail(chance.choice(WORDS + HELP_WORDS), chance.randint(0, 5), kind)
                    training.bear(member, chance.choice((fail, None)))
                case "stop":
                    training.kill(member, signal.SIGSTOP)
                case _:
                    for each in range(workers):
                        training.kill(each, signal.SIGCONT)
            for _ in range(chance.randint(0, 10)):
                training.look()
        for member in range(workers):
            training.kill(member)
            training.bear(member)
        training.until(training.version + 20)
        training.host.stop()
        training.check()
