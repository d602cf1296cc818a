"""One worker, several servers: each part of W belongs to the same lease."""

from __future__ import annotations

import numpy as np
import pytest

from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease, Push
from distsgd.errors import ChannelClosed
from distsgd.transport.base import Work
from distsgd.transport.connections import ShardedChannel


class Answers:
    """A channel with these answers."""

    name, buffer = "answers", None

    def __init__(self, *answers: Work | None) -> None:
        self._answers, self.asked = list(answers), 0

    def send(self, push: Push | None) -> None:
        self.asked += 1

    def receive(self) -> Work | None:
        return self._answers.pop(0)


def part(step: int, *values: float) -> tuple[Lease, Floats]:
    return Lease(step, 0, 1, step), np.array(values, np.float32)


def received(*channels: Answers) -> Work | None:
    sharded = ShardedChannel(channels, [slice(0, 1), slice(1, 3)], None)
    sharded.send(None)
    return sharded.receive()


def test_the_parts_are_put_together() -> None:
    found = received(Answers(part(5, 1)), Answers(part(5, 2, 3)))
    assert found is not None and found[1].tolist() == [1, 2, 3]


def test_what_was_for_a_worker_that_died_is_not_taken() -> None:
    follower = Answers(part(4, 8, 9), part(5, 2, 3))
    found = received(Answers(part(5, 1)), follower)
    assert found is not None and found[1].tolist() == [1, 2, 3]
    assert follower.asked == 2


def test_all_dismiss_or_none() -> None:
    assert received(Answers(None), Answers(None)) is None
    with pytest.raises(ChannelClosed):
        received(Answers(part(5, 1)), Answers(None))
