"""Each script still finds what it imports; what it measures is not measured here."""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from distsgd.config.settings import SETTINGS
from distsgd.engine.events import Track

SCRIPTS = Path(__file__).parents[2] / "scripts"
ALL = sorted(path.relative_to(SCRIPTS) for path in SCRIPTS.rglob("*.py"))


@pytest.mark.parametrize("script", ALL, ids=str)
def test_its_imports_are_there(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    runpy.run_path(str(SCRIPTS / script), run_name="imported")


def test_every_kind_of_fault_is_described() -> None:
    faults = runpy.run_path(str(SCRIPTS / "faults.py"), run_name="imported")
    assert {f"{name}.py" for name in faults["COMMANDS"]} <= {path.name for path in ALL}
    done = subprocess.run(
        [sys.executable, SCRIPTS / "faults.py", "kill", "--help"], capture_output=True, text=True
    )
    assert "usage: faults.py kill" in done.stdout


def test_updates_after_a_kill_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that the survivor applies beside the dead is none; all that the server applies are."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    recovery = importlib.import_module("harness.recovery")
    second = 1_000_000_000
    tracks = (
        Track("server 0", (("update", 0, 90), ("add", 90, 120), ("update", 300, 310))),
        Track("worker 0", (("update", 40, 50), ("update", 100, 110), ("update", 500, 510))),
        Track("worker 1", (("update", 500, 511), ("update", 600, 4 * second))),
    )
    assert recovery.updates_after(100, tracks) == [310, 510]


def test_every_fleet_is_asked_for_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    fleets = runpy.run_path(str(SCRIPTS / "one_sha.py"), run_name="imported")["fleets"]()
    assert {fleet["channel"] for fleet in fleets} == set(SETTINGS["channel"].choices)
    of_several = len(SETTINGS["channel"].choices) - 1  # a team has one server
    assert len(fleets) == 4 * (3 * of_several + 1)
