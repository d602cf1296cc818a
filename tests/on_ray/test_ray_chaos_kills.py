"""Strikes at real processes: who is killed, who is stopped, and that nobody stays stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, wait_for

from distsgd.core.chaos import Chaos, Fault, Strike
from distsgd.on_ray.chaos_kills import ChaosKills

pytestmark = pytest.mark.ray

Sleeper = subprocess.Popen[bytes]


@pytest.fixture
def sleepers() -> Iterator[list[Sleeper]]:
    code = "import time; time.sleep(600)"
    found = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    yield found
    for process in found:
        process.kill()
        process.wait()


def state(process: Sleeper) -> str:
    """ "T" for a stopped one."""
    return (
        Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    )


def wait_for_state(process: Sleeper, stopped: bool) -> None:
    wait_for(lambda: (state(process) == "T") == stopped)


def chaos_kills(
    sleepers: list[Sleeper], *faults: Fault, node: str = ""
) -> tuple[ChaosKills, list[Any]]:
    import ray

    told: list[tuple[int, str]] = []

    def tell(strike: Strike, name: str) -> None:
        told.append((strike.version, name))

    kills = ChaosKills(Chaos(faults), 10, tell)
    for number, process in enumerate(sleepers):
        here = node or ray.get_runtime_context().get_node_id()
        name = f"worker {number}" if number else "server 0"
        kills.started(name, ray.put((here, process.pid)))
    return kills, told


def test_workers_are_killed_at_their_updates_and_servers_are_not(
    sleepers: list[Sleeper], shared_ray: None
) -> None:
    kills, told = chaos_kills(sleepers, Fault("kill-worker", every=5))
    kills.updated(14)
    assert told == []  # those up to 10 were before
    kills.updated(16)
    kills.updated(15)  # after a server's death, from an update before
    assert [version for version, _ in told] == [15]
    kills.updated(40)
    assert [version for version, _ in told] == [15, 20]  # then there is none to kill
    assert sleepers[0].poll() is None
    assert [process.wait(PATIENCE) for process in sleepers[1:]] == [-9, -9]
    kills.close()


def test_who_is_stopped_goes_on_after_its_time(sleepers: list[Sleeper], shared_ray: None) -> None:
    kills, told = chaos_kills(sleepers[:2], Fault("stop-worker", at=11, seconds=0.2))
    kills.updated(11)
    assert told == [(11, "worker 1")]
    wait_for_state(sleepers[1], stopped=False)
    kills.close()


def test_calm_leaves_nobody_stopped(sleepers: list[Sleeper], shared_ray: None) -> None:
    kills, told = chaos_kills(sleepers, Fault("stop-worker", every=1, seconds=600))
    kills.updated(15)
    for process in sleepers[1:]:
        wait_for_state(process, stopped=True)
    assert sorted(name for _, name in told) == ["worker 1", "worker 2"]  # each once
    kills.close()
    for process in sleepers:
        wait_for_state(process, stopped=False)


def test_one_that_was_replaced_while_stopped_is_woken(
    sleepers: list[Sleeper], shared_ray: None
) -> None:
    import ray

    kills, _ = chaos_kills(sleepers[:2], Fault("stop-worker", at=11, seconds=600))
    kills.updated(11)
    wait_for_state(sleepers[1], stopped=True)
    kills.started("worker 1", ray.put(("elsewhere", os.getpid())))
    wait_for_state(sleepers[1], stopped=False)
    kills.close()


def test_processes_of_other_machines_and_dead_ones_are_left_alone(
    sleepers: list[Sleeper], shared_ray: None
) -> None:
    faults = (Fault("kill-worker", every=1), Fault("kill-server", every=1))
    kills, told = chaos_kills(sleepers, *faults, node="elsewhere")
    kills.updated(30)
    for process in sleepers[1:]:
        process.kill()
        process.wait()
    here, told_here = chaos_kills(sleepers[1:], *faults)
    here.updated(30)
    assert told == told_here == []
    assert sleepers[0].poll() is None
