"""Each worker has a place of its own: its piece of every minibatch, also if it is ahead."""

import random

import pytest
from toy_fleet import START, Toy, granted, toy_plan

from distsgd.core.server.consistency import make_policy

STEPS = 12


class Ssp:
    """Workers of `ssp` that answer one at a time, each in the same place where nothing is odd."""

    def __init__(self, staleness, workers, slots=4):
        plan = toy_plan(STEPS * slots, slots, 1, epochs=1)
        self.toy = Toy(plan, "sgd", make_policy("ssp", staleness=staleness))
        self.server, self.leases = self.toy.server(), {}
        for worker in range(workers):
            self.server.joined(worker)
        for worker in range(workers):
            self.take(self.server.pull(worker))

    def take(self, decisions):
        self.leases |= granted(decisions)

    def answer(self, worker):
        """Answer and ask for more; the piece that was given, or None if the worker waits."""
        push = self.toy.answer(self.leases.pop(worker), START)
        self.take(self.server.exchange(worker, push))
        return self.piece(worker)

    def piece(self, worker):
        return self.leases[worker].piece if worker in self.leases else None


def test_a_worker_that_is_ahead_keeps_its_place_and_helps_with_the_oldest_before_it_waits():
    crew = Ssp(staleness=2, workers=2)
    assert [crew.piece(worker) for worker in (0, 1)] == [(0, 0, 2), (0, 2, 4)]
    assert [crew.answer(0) for _ in range(2)] == [(1, 0, 2), (2, 0, 2)]
    assert [crew.answer(0) for _ in range(3)] == [(1, 2, 4), (2, 2, 4), None]
    assert crew.answer(1) == (3, 2, 4)
    assert crew.piece(0) == (3, 0, 2)


def test_a_worker_whose_piece_was_taken_goes_on_with_its_next():
    crew = Ssp(staleness=2, workers=2)
    assert [crew.answer(0) for _ in range(3)][-1] == (1, 2, 4)
    assert crew.answer(1) == (2, 2, 4)
    assert crew.answer(0) == (3, 0, 2), "its own again"


def test_a_worker_helps_with_what_is_two_minibatches_older_than_its_own_next_piece():
    """However far ahead it may be: gradients would only be older."""
    crew = Ssp(staleness=8, workers=2)
    assert [crew.answer(0) for _ in range(3)] == [(1, 0, 2), (2, 0, 2), (1, 2, 4)]


def test_whoever_was_helped_is_helped_at_once_until_it_keeps_up():
    crew = Ssp(staleness=8, workers=2)
    assert [crew.answer(0) for _ in range(3)][-1] == (1, 2, 4)
    assert [crew.answer(0) for _ in range(3)] == [(2, 2, 4), (3, 0, 2), (3, 2, 4)]
    assert [crew.answer(1) for _ in range(2)] == [(4, 2, 4), (5, 2, 4)]
    assert [crew.answer(0) for _ in range(3)] == [(4, 0, 2), (5, 0, 2), (6, 0, 2)]
    assert crew.answer(0) == (7, 0, 2), "it keeps its place again"


@pytest.mark.parametrize(("workers", "staleness"), [(2, 1), (2, 3), (3, 2), (4, 3)])
def test_otherwise_nobody_takes_the_piece_of_another(workers, staleness):
    """So the rows that a worker gathers before it is given a lease are those that it needs."""
    crew, chance, turns = Ssp(staleness, workers), random.Random(3), [0] * workers
    most = min(staleness, 2)
    for _ in range(workers * (STEPS - 2)):
        worker = chance.choice([w for w in range(workers) if turns[w] - min(turns) < most])
        step, first, last = crew.piece(worker)
        turns[worker] += 1
        if turns[worker] == STEPS:
            break
        assert crew.answer(worker) == (step + 1, first, last)


def test_the_place_of_a_lost_worker_goes_to_the_last_and_its_successor_gets_that_one():
    crew = Ssp(staleness=2, workers=3)
    pieces = [(0, 1), (1, 2), (2, 4)]
    assert [crew.piece(worker)[1:] for worker in range(3)] == pieces
    crew.take(crew.server.lost(0))
    crew.leases.pop(0)
    assert crew.answer(1) == (0, 0, 1), "what was given back comes first"
    assert crew.answer(2) == (1, 0, 2), "a minibatch for two, and the first place in it"
    assert crew.answer(1) == (1, 2, 4)
    crew.take(crew.server.pull(0))
    assert crew.piece(0) == (2, 2, 4), "cut for three"


def test_the_next_minibatch_is_not_begun_before_what_nobody_owns():
    """More workers than pieces: they take what comes next, whoever they are."""
    crew = Ssp(staleness=3, workers=3, slots=2)
    assert [crew.piece(worker) for worker in range(3)] == [(0, 0, 1), (0, 1, 2), (1, 0, 1)]
    assert crew.answer(1) == (1, 1, 2)
    assert [crew.answer(1) for _ in range(3)] == [(2, 1, 2), (2, 0, 1), (3, 1, 2)]
