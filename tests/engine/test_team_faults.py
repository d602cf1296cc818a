"""Workers of a team that die or stop at each word of its protocol, in processes of their own."""

from __future__ import annotations

import signal
from itertools import product

import pytest
from team_processes import Fail, Nursery, Training, job_and_start

from distsgd.engine.job import Job, Snapshot
from distsgd.engine.team import WORDS

POINTS = [
    (word, member) for word, member in product(WORDS, (0, 1))
    if (word, member) != ("bell", 1)  # the first member rings for all
]  # fmt: skip


@pytest.fixture(scope="module")
def long() -> tuple[Job, Snapshot]:
    """More updates than it takes to fail everywhere."""
    return job_and_start(
        epochs=10_000, batch_size=40, slot_size=10, optimizer="momentum", schedule="constant",
        log_every=1000,
    )  # fmt: skip


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that does not go on is soon found to hang."""
    monkeypatch.setattr("distsgd.engine.team_host._OVERDUE_SECONDS", 0.05)
    monkeypatch.setattr("distsgd.engine.team_host._LEAVING_SECONDS", 0.02)


def test_a_member_that_is_killed_at_any_word_loses_nothing(
    births: Nursery, long: tuple[Job, Snapshot]
) -> None:
    with Training(births, *long, 2) as training:
        training.begin()
        for word, member in POINTS:
            training.kill(member)
            training.bear(member, Fail(word))
            training.wait(member, "X")
        training.bear(member)
        training.until(training.version + 50)
        training.host.stop()
        training.check()
        assert len(training.updates_by_team) > 3 * len(POINTS)


def test_a_member_that_stops_at_any_word_and_goes_on_later_spoils_nothing(
    births: Nursery, long: tuple[Job, Snapshot], impatient: None
) -> None:
    with Training(births, *long, 2) as training:
        training.begin()
        for number, (word, member) in enumerate(POINTS):
            training.kill(member)
            training.bear(member, Fail(word, signal=signal.SIGSTOP))
            training.wait(member, "T")
            training.until(training.version + number % 4)
            training.kill(member, signal.SIGCONT)
        training.until(training.version + 50)
        training.host.stop()
        training.check()
        assert len(training.updates_by_team) > 3 * len(POINTS)
