"""Where a process runs, and how it moves away from another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from distsgd.engine.processors import move_away, processor_of


@pytest.fixture
def allowed() -> Iterator[set[int]]:
    """The processors of this thread, which are its own again afterwards."""
    before = os.sched_getaffinity(0)
    yield before
    os.sched_setaffinity(0, before)


@pytest.fixture
def neighbour() -> Iterator[subprocess.Popen[str]]:
    """A process that waits on the first of the processors allowed."""
    first = min(os.sched_getaffinity(0))
    text = f"import os; os.sched_setaffinity(0, [{first}]); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_the_processor_of_a_process(allowed: set[int], neighbour: subprocess.Popen[str]) -> None:
    assert processor_of(neighbour.pid) == min(allowed)
    os.sched_setaffinity(0, {max(allowed)})
    assert processor_of(os.getpid()) == max(allowed)
    assert processor_of(1 << 30) is None


def test_who_shares_a_processor_moves_and_may_run_where_it_might_before(
    allowed: set[int], neighbour: subprocess.Popen[str]
) -> None:
    first = min(allowed)
    os.sched_setaffinity(0, {first})
    assert move_away([neighbour.pid]) is None, "there is no other"
    assert move_away([]) is False and move_away([1 << 30]) is False
    assert os.sched_getaffinity(0) == {first}
    if len(allowed) > 1:
        os.sched_setaffinity(0, allowed)
        while processor_of(os.getpid()) != first:  # until the scheduler has put it there
            os.sched_setaffinity(0, {first})
            os.sched_setaffinity(0, allowed)
        moved = move_away([neighbour.pid])
        assert moved in (True, False) and os.sched_getaffinity(0) == allowed
