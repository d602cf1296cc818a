"""Our own processes import nothing of the user's; pauses do not depend on a clock."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

import distsgd
from distsgd.data.system import pause, python_module, wait_for_exit, whole_environment

SOURCES = sorted(Path(distsgd.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize(
    "module", ["distsgd.on_ray.session_guard", "distsgd.data.remote.fetching_ahead"]
)
def test_a_module_runs_among_shadows(module: str, tmp_path: Path) -> None:
    for name in ("distsgd", "numpy", "queue", "random", "socket", "runpy", "json"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} is a shadow')")
    done = subprocess.run(
        python_module(module, str(tmp_path / "folder"), "file:///", "0"), cwd=tmp_path, input=b"x",
        capture_output=True,
    )  # fmt: skip
    assert b"shadow" not in done.stderr
    assert done.returncode == 0 or b"DatasetError" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("given", "passed_on"), [(":/more", "/more"), ("/a::/b:", "/a:/b"), (":", ""), (None, None)]
)
def test_no_empty_element_of_a_path_is_passed_on(
    given: str | None, passed_on: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands for the working folder."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if given is not None:
        monkeypatch.setenv("PYTHONPATH", given)
    assert whole_environment(MORE="1").get("PYTHONPATH") == passed_on


def test_every_process_of_ours_gets_that_environment() -> None:
    starting = [path for path in SOURCES if ".Popen(" in path.read_text(encoding="utf-8")]
    assert len(starting) == 5
    assert all("whole_environment(" in path.read_text(encoding="utf-8") for path in starting)


def test_every_process_of_ours_is_started_so() -> None:
    # startup.py measures `python -P -c`, run_kernel.py starts this very command again, and the
    # others start an isolated Python.
    own = {"system.py", "startup.py", "run_kernel.py", "session.py", "processes.py"}
    starting = [path for path in SOURCES if "sys.executable," in path.read_text(encoding="utf-8")]
    assert {path.name for path in starting} <= own
    isolated = [path for path in starting if path.name in ("session.py", "processes.py")]
    assert all('sys.executable, "-I", "-S"' in path.read_text("utf-8") for path in isolated)


def test_nothing_sleeps_by_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a clock is set meanwhile, `time.sleep` may raise."""

    def fails(seconds: float) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(time, "sleep", fails)
    pause(-1.0)
    pause(0.0)
    with subprocess.Popen(["sleep", "60"]) as child:
        assert wait_for_exit(child, 0.01) is None
        child.kill()
        assert wait_for_exit(child, 60) == -9
    sleeping = [path for path in SOURCES if "time.sleep(" in path.read_text(encoding="utf-8")]
    assert sleeping == []
