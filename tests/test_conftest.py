"""What a test starts and leaves behind has ended before the next one begins."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import PATIENCE, command_line, not_taken, wait_for

LEFT: list[subprocess.Popen[str]] = []


@pytest.fixture(scope="module")
def shared() -> Iterator[subprocess.Popen[str]]:
    """A process of the whole module."""
    with subprocess.Popen(["sleep", "1000"], text=True) as process:
        yield process
        process.kill()


def test_processes_are_left_behind(shared: subprocess.Popen[str], tmp_path: Path) -> None:
    """A training without end, one that ignores SIGTERM, and a grandchild whose parent has gone."""
    run = tmp_path / "run"
    arguments = ("train", "--dataset", "sample", "--workers", 0, "--epochs", 100_000)
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(1000)"
    orphan = "setsid sleep 1000 2>/dev/null &"
    for command in (
        command_line(*arguments, "--run-dir", run),
        [sys.executable, "-c", stubborn],
        ["sh", "-c", orphan],
    ):
        LEFT.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    assert LEFT[-1].wait(PATIENCE) == 0
    wait_for((run / "journal.jsonl").exists)
    assert [process.poll() for process in LEFT] == [None, None, 0]


def test_they_have_ended_and_what_is_shared_has_not(shared: subprocess.Popen[str]) -> None:
    for process in LEFT:
        process.communicate(timeout=PATIENCE)  # the pipe is closed once the orphan has ended, too
    assert [process.returncode for process in LEFT] == [-9, -9, 0]
    assert shared.poll() is None


def test_each_module_is_taken_once_and_no_test_is_lost(tmp_path: Path) -> None:
    names = ["a.py::1", "a.py::2", "x/b.py::1", "c.py::1", "a.py::3", "c.py::2"]
    items: list[Any] = [SimpleNamespace(nodeid=name) for name in names]
    one, other = (not_taken(items, tmp_path / "taken") for _ in range(2))
    begun = [next(one).nodeid, next(other).nodeid]
    assert begun == ["a.py::1", "x/b.py::1"]
    assert [item.nodeid for item in one] == ["a.py::2", "c.py::1", "a.py::3", "c.py::2"]
    assert not list(other)
