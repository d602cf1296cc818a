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
from distsgd.engine.team import WORDS, TeamMember
from distsgd.engine.team_turns import TurnMember
from distsgd.engine.worker import Worker
from distsgd.transport.base import Membership
from distsgd.transport.team_memory import BELL, LIMIT, REVOKED, VERSION, TeamMemory, TeamShape

Case = tuple[int, tuple[int, ...], int, dict[str, Any]]
"""Members, updates of each lease, faults, and options of the model."""

QUICK: dict[str, Case] = {
    "a fault in one update": (2, (1,), 1, {}),
    "a fault in two updates": (2, (2,), 1, {"polls": False}),
    "two leases": (2, (2, 1), 0, {"polls": False}),
    "three members": (3, (1,), 0, {"polls": False, "coarse": True}),
}
THOROUGH: dict[str, Case] = {
    "two faults": (2, (2,), 2, {}),
    "a fault in two leases": (2, (2, 1), 1, {}),
    "three leases": (2, (2, 1, 1), 0, {}),
    "three members, a fault": (3, (1,), 1, {"coarse": True}),
    "three members, two updates": (3, (2,), 0, {"coarse": True}),
}


def all_versions(leases: tuple[int, ...]) -> set[int]:
    return set(range(sum(leases) + 1))


@pytest.mark.parametrize("case", QUICK.values(), ids=QUICK)
def test_nothing_that_can_happen_is_wrong(case: Case) -> None:
    """Nobody reads what is being written, nothing is lost, and nobody waits for ever."""
    members, leases, faults, options = case
    states, ends = explore(TeamModel(members, leases, faults, **options))
    assert states > 10_000 and ends == all_versions(leases)


@pytest.mark.thorough
@pytest.mark.parametrize("case", THOROUGH.values(), ids=THOROUGH)
def test_nothing_deeper_that_can_happen_is_wrong(case: Case) -> None:
    members, leases, faults, options = case
    _, ends = explore(TeamModel(members, leases, faults, **options))
    assert ends == all_versions(leases)


BROKEN: dict[str, tuple[str, Case]] = {
    "meets_when_arrived": ("adds sums of", (2, (1,), 0, {})),
    "meets_when_applied": ("sums of|of W where", (2, (2,), 0, {})),
    "copies": ("of W where", (2, (1,), 0, {})),
    "stores_then_wakes": ("wait for ever", (2, (1,), 0, {})),
    "lies_down_then_looks": ("wait for ever", (2, (1,), 0, {})),
    "last_wakes": ("wait for ever", (3, (1,), 0, {"coarse": True})),
    "sums_then_arrives": ("adds sums of", (2, (1,), 0, {})),
    "range_then_applied": ("of W where", (2, (1,), 0, {})),
    "smallest": ("of W where", (2, (1,), 0, {})),
    "home_when_paused": ("the server reads version", (2, (2, 1), 0, {})),
    "bell_then_limit": ("wait", (2, (2, 1), 0, {"polls": False})),
    "limit_wakes": ("wait for ever", (2, (1, 1), 0, {"polls": False})),
    "revoking_wakes": ("wait for ever", (2, (1,), 0, {"polls": False})),
    "moves_bell": ("wait for ever", (2, (2, 1), 0, {"polls": False})),
    "looks_after_bell": ("wait for ever", (2, (2, 1), 0, {"polls": False})),
    "sees_deaths": ("for ever", (2, (1,), 1, {"polls": False})),
    "members_see_death": ("wait for ever", (2, (1,), 1, {"polls": False})),
    "ring": ("record", (2, (2,), 0, {"polls": False})),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_rule_that_is_broken_is_found(rule: str) -> None:
    """So each of them is needed, and the search would find a protocol that is wrong."""
    found, (members, leases, faults, options) = BROKEN[rule]
    broken = Rules(**{rule: 1 if rule in ("copies", "ring") else False})
    with pytest.raises(Wrong, match=found):
        explore(TeamModel(members, leases, faults, broken, **options))


def test_every_rule_is_broken_once() -> None:
    assert BROKEN.keys() == Rules.__dataclass_fields__.keys()


def test_the_model_has_the_words_of_the_team() -> None:
    model = TeamModel(2, (1,), 0)
    assert [word for word, _ in model.program if word is not None] == list(WORDS)


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
    words = [word for word, _ in TeamModel(1, (1,), 0).program if word is not None]
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
