"""What stands in for an agent ends with its node."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import PATIENCE

from distsgd.on_ray import stand_in

COMMAND = [sys.executable, "-I", "-S", str(Path(stand_in.__file__))]


def test_it_ends_when_its_pipe_is_closed() -> None:
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


def test_without_a_pipe_it_ends_when_its_node_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "_SECONDS", 0.001)
    parents = iter([7, 7, 7, 1])
    with Path("/dev/null").open() as nothing, monkeypatch.context() as patched:
        patched.setattr(os, "getppid", lambda: next(parents))
        stand_in.wait(7, nothing.fileno())
    assert next(parents, None) is None
