"""The report: one file, nothing outside, the numbers of the run, names as data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support import Run

from distsgd.runs.metrics import epoch_rows

TRAIN = ("train", "--dataset", "sample", "--workers", "0", "--epochs", "2")


@pytest.fixture
def run(distsgd_here: Run) -> Path:
    return Path(json.loads(distsgd_here(*TRAIN, "--json").stdout)["run_dir"])


def content(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="frozen">(.*?)</script>', page, re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_one_file_with_the_numbers_of_the_run(run: Path, distsgd_here: Run) -> None:
    path = run.parent / "report.html"
    done = distsgd_here("report", run, "--out", path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == str(path)
    page = path.read_text(encoding="utf-8")
    assert len(page) < 2_000_000
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert "@import" not in page and "import(" not in page
    data = content(page)
    rows = epoch_rows(run / "metrics.jsonl")
    (shown,) = data["runs"]
    assert shown["epochs"]["test_loss"] == [row["test_loss"] for row in rows]
    assert set(data["curves"]) == {"epoch", "update", "seconds"}
    versions = [str(one["version"]) for one in shown["checkpoints"]]
    assert list(data["templates"][shown["id"]]) == versions


def test_its_policy_allows_its_own_scripts_alone(run: Path, distsgd_here: Run) -> None:
    path = run.parent / "report.html"
    distsgd_here("report", run, "--out", path)
    page = path.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None and "unsafe" not in policy[1]
    for tag in ("script", "style"):
        for inner in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy[1], tag


def test_names_of_its_parts_are_distinct() -> None:
    """Its modules are one script, so that no two may declare the same name."""
    from distsgd.watch.report import _MODULES, _as_part

    declared = re.compile(r"^(?:async )?(?:function|class|const|let) (\w+)", re.MULTILINE)
    names = [name for module in _MODULES for name in declared.findall(_as_part(module))]
    assert len(names) > 40 and len(names) == len(set(names))


def test_several_runs_and_a_hostile_name(run: Path, distsgd_here: Run) -> None:
    hostile = run.parent / "<script>alert(1)<!-- 🐈 &"
    distsgd_here(*TRAIN, "--seed", "1", "--run-dir", hostile)
    path = run.parent / "report.html"
    assert distsgd_here("report", run, hostile, hostile, "--out", path).returncode == 0
    page = path.read_text(encoding="utf-8")
    assert "<script>alert" not in page
    data = content(page)
    assert [one["name"] for one in data["runs"]] == [run.name, hostile.name]
    assert data["differing"]["settings"] == ["seed"]
    assert distsgd_here("report", hostile, "--out", path).returncode == 0
    assert "<script>alert" not in path.read_text(encoding="utf-8")


def test_what_cannot_be_written_or_read(run: Path, distsgd_here: Run, tmp_path: Path) -> None:
    done = distsgd_here("report", run, "--out", tmp_path / "nowhere" / "report.html")
    assert done.returncode == 1 and "error:" in done.stderr
    done = distsgd_here("report", "nothing")
    assert done.returncode == 1 and "there is no run nothing" in done.stderr
