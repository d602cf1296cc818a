"""Every order in which a team and its server can do what their protocol says, and what it is for.

`team_model` is the protocol, as `distsgd.transport.team_memory` describes it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from team_model import Rules, TeamModel, Wrong, explore
from team_processes import job_and_start

from distsgd.engine.job import Job
from distsgd.engine.team import HELP_WORDS, WORDS, TeamMember
from distsgd.engine.team_turns import TurnMember
from distsgd.engine.worker import Worker
from distsgd.transport.base import Membership
from distsgd.transport.team_memory import BELL, LIMIT, REVOKED, VERSION, TeamMemory, TeamShape

Case = tuple[int, tuple[int, ...], int, dict[str, Any]]
"""Members, updates of each lease, faults, and options of the model."""

QUICK: dict[str, Case] = {
    "one update": (2, (1,), 0, {"polls": False}),
    "an update that is looked at": (2, (1,), 0, {"coarse": True}),
    "a fault in one update": (2, (1,), 1, {"polls": False, "coarse": True}),
    "two updates": (2, (2,), 0, {"polls": False, "coarse": True}),
}
THOROUGH: dict[str, Case] = {
    "a fault in two updates": (2, (2,), 1, {"polls": False, "coarse": True}),
    "two leases": (2, (1, 1), 0, {"polls": False, "coarse": True}),
    "leases of two updates": (2, (2, 1), 0, {"polls": False, "coarse": True}),
    "shared ranges": (2, (2,), 0, {"polls": False, "coarse": True, "shared": True}),
    "shared ranges, a fault": (2, (1,), 1, {"polls": False, "coarse": True, "shared": True}),
}


def all_versions(leases: tuple[int, ...]) -> set[int]:
    return set(range(sum(leases) + 1))


@pytest.mark.parametrize("case", QUICK.values(), ids=QUICK)
def test_nothing_that_can_happen_is_wrong(case: Case) -> None:
    """Nobody uses what is being written, nothing is lost, and nobody waits for ever."""
    members, leases, faults, options = case
    states, ends = explore(TeamModel(members, leases, faults, **options))
    assert states > 10_000 and ends == all_versions(leases)


@pytest.mark.thorough
@pytest.mark.parametrize("case", THOROUGH.values(), ids=THOROUGH)
def test_nothing_deeper_that_can_happen_is_wrong(case: Case) -> None:
    members, leases, faults, options = case
    _, ends = explore(TeamModel(members, leases, faults, **options))
    assert ends == all_versions(leases)


@pytest.mark.thorough
def test_nothing_that_three_members_can_do_is_wrong() -> None:
    """As far as three million states reach."""
    model = TeamModel(3, (1,), 0, polls=False, coarse=True, revokes=False)
    _, ends = explore(model, 3_000_000)
    assert ends == {1}


COARSE = {"polls": False, "coarse": True}
ALONE = {"polls": False, "coarse": True, "revokes": False}
SHARED = {**ALONE, "shared": True}

BROKEN: dict[str, tuple[str, Case]] = {
    "meets": ("uses other sums", (2, (1,), 0, COARSE)),
    "checks_applied": ("uses other sums", (2, (3,), 0, ALONE)),
    "sums_then_arrives": ("uses other sums", (2, (1,), 0, COARSE)),
    "record_then_arrives": ("no record", (2, (1,), 0, COARSE)),
    "sums_then_helped": ("uses other sums", (2, (1,), 0, COARSE)),
    "copies": ("takes W", (2, (2,), 0, COARSE)),
    "sums": ("uses other sums", (2, (2,), 0, COARSE)),
    "stores_writing": ("uses W", (2, (3,), 0, ALONE)),
    "writing_then_copies": ("uses W", (2, (3,), 0, ALONE)),
    "checks_writing": ("uses W", (2, (3,), 0, ALONE)),
    "checks_writing_of_range": ("uses another range", (2, (3,), 0, SHARED)),
    "range_then_shared": ("uses another range", (2, (1,), 0, {**COARSE, "shared": True})),
    "range_then_applied": ("takes W", (2, (1,), 0, COARSE)),
    "copies_then_caught_up": ("takes W", (2, (2,), 0, COARSE)),
    "takes_from_furthest": ("takes W", (2, (1,), 0, COARSE)),
    "looks_at_revoked": ("takes W", (2, (3,), 1, COARSE)),
    "helps": ("wait for ever", (2, (1,), 1, COARSE)),
    "notices_that_it_is_behind": ("wait for ever", (2, (2,), 0, COARSE)),
    "stores_then_wakes": ("sleeps on", (2, (1,), 0, {"polls": False})),
    "lies_down_then_looks": ("sleeps on", (2, (1,), 0, {"polls": False})),
    "arrived_wakes": ("sleeps on", (2, (1,), 0, COARSE)),
    "limit_wakes": ("wait for ever", (2, (1, 1), 0, COARSE)),
    "revoking_wakes": ("wait for ever", (2, (1,), 0, COARSE)),
    "all_ring": ("wait for ever", (2, (1,), 1, COARSE)),
    "sees_deaths": ("waits for ever", (2, (1,), 1, COARSE)),
    "members_see_death": ("wait for ever", (2, (1,), 1, COARSE)),
    "ring": ("writes over the record", (2, (2,), 0, COARSE)),
}
SLOWLY_BROKEN: dict[str, tuple[str, Case]] = {
    "record_then_helped": ("no record", (3, (1,), 0, ALONE)),
    "helped_wakes": ("sleeps on", (3, (1,), 0, ALONE)),
    "looks_at_limit": ("wait for ever", (2, (1, 1), 0, COARSE)),
    "home_when_paused": ("takes W", (2, (2, 1), 0, COARSE)),
    "bell_then_limit": ("wait for ever", (2, (2, 1), 0, COARSE)),
    "moves_bell": ("wait for ever", (2, (2, 1), 0, COARSE)),
    "looks_after_bell": ("wait for ever", (2, (2, 1), 0, ALONE)),
}


def check_that_it_is_found(rule: str, found: str, case: Case) -> None:
    members, leases, faults, options = case
    broken = Rules(**{rule: 1 if rule in ("copies", "sums", "ring") else False})
    with pytest.raises(Wrong, match=found):
        explore(TeamModel(members, leases, faults, broken, **options))


@pytest.mark.parametrize("rule", BROKEN)
def test_a_rule_that_is_broken_is_found(rule: str) -> None:
    """So each of them is needed, and the search would find a protocol that is wrong."""
    check_that_it_is_found(rule, *BROKEN[rule])


@pytest.mark.thorough
@pytest.mark.parametrize("rule", SLOWLY_BROKEN)
def test_a_rule_that_is_broken_is_found_at_last(rule: str) -> None:
    check_that_it_is_found(rule, *SLOWLY_BROKEN[rule])


BEYOND = {
    "equal", "writing_then_catches_up", "copies_from_furthest", "applied_wakes",
}  # fmt: skip
"""Rules whose breaking shows only with more members or updates than are searched here."""


def test_every_rule_is_broken_once() -> None:
    assert BROKEN.keys() | SLOWLY_BROKEN.keys() | BEYOND == Rules.__dataclass_fields__.keys()


def test_the_model_has_the_words_of_the_team() -> None:
    words = [word for word in TeamModel(2, (1,), 0, shared=True).words.values() if word is not None]
    assert set(words) == {*WORDS, *HELP_WORDS, "shared"}


@pytest.fixture
def alone() -> Iterator[tuple[Job, TeamMemory]]:
    """The memory of a team of one that has been granted two updates."""
    job, start = job_and_start(batch_size=20, slot_size=10, epochs=1)
    bell = os.eventfd(0)
    memory = TeamMemory.make(
        TeamShape(1, job.parameters, job.dtype, 0, 2, job.most_losses, 4), bell
    )
    memory.weights[0] = start.weights
    memory.words[LIMIT] = memory.words[BELL] = 2
    yield job, memory
    os.close(bell)


def test_a_member_goes_through_the_words_of_the_model(alone: tuple[Job, TeamMemory]) -> None:
    """For two updates; the second ends its lease."""
    job, memory = alone
    seen: list[tuple[str, int]] = []

    def look(word: str, version: int) -> None:
        seen.append((word, version))
        if word == "bell":
            memory.words[REVOKED] = 1

    ours, theirs = socket.socketpair()
    with ours, theirs:
        place = Membership(memory, 0)
        assert TeamMember(job, Worker(job), place, ours.fileno(), look).run() == 2
    words = list(WORDS)
    silent = words[:-1]  # the bell is rung at the end
    assert seen == [*((word, 1) for word in silent), *((word, 2) for word in words)]


def test_nobody_takes_a_turn_once_the_team_is_revoked(
    alone: tuple[Job, TeamMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if that is while one waits for the lock, so the server can take W as it is."""
    job, memory = alone
    locks: list[str] = []
    take, leave = memory.try_lock, memory.unlock

    def lock() -> bool:
        locks.append("taken")
        if len(locks) == 3:  # its first turn to update; before, it has taken its ticket
            memory.words[REVOKED] = 1
        return take()

    def unlock() -> None:
        locks.append("left")
        leave()

    monkeypatch.setattr(memory, "try_lock", lock)
    monkeypatch.setattr(memory, "unlock", unlock)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert TurnMember(job, Worker(job), Membership(memory, 0), ours.fileno()).run() == 0
    assert memory.words[VERSION] == 0 and locks == ["taken", "left", "taken", "left"]
