"""Each script still finds what it imports; what it measures is not measured here."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

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
