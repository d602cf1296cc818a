from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import Run

from distsgd.training import train


@pytest.fixture
def distsgd(distsgd_here: Run, tmp_path: Path) -> Run:
    train("sample", run_dir=tmp_path / "run", workers=0, epochs=1)
    return distsgd_here


def test_figures_of_a_run(distsgd: Run, tmp_path: Path) -> None:
    done = distsgd("report", "run", "--figure", "confusion", "--out", "confusion.svg", "--json")
    assert json.loads(done.stdout)["path"] == "confusion.svg"
    assert "<svg" in (tmp_path / "confusion.svg").read_text()
    assert distsgd("report", "run", "--figure", "loss", "--size", "column").returncode == 0
    assert (tmp_path / "run-loss.png").read_bytes().startswith(b"\x89PNG")
    for wrong, problem in (
        (("--format", "png"), "shows one figure"),
        (("--figure", "loss", "--format", "html"), "no html file"),
        (("--figure", "lost"), "--figure cannot be lost"),
        (("--figure", "loss", "--size", "A4"), "--size cannot be A4"),
        (("--figure", "templates", "--checkpoint", "7"), "has no update 7: its last is 6"),
    ):
        done = distsgd("report", "run", *wrong)
        assert done.returncode and problem in done.stderr and done.stderr.count("\n") == 1
