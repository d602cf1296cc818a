"""`distsgd bench` as a user runs it, on the sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import Run

QUICK = ("bench", "--dataset", "sample", "--quick", "--seconds", "0.2")


def test_json_is_one_object_and_all_else_is_on_stderr(distsgd: Run, tmp_path: Path) -> None:
    done = distsgd(
        *QUICK, "--only", "numpy,inline-256,inline-2048,slot-products,import",
        "--output", "bench.md", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["numpy", "inline-256", "inline-2048", "slot-products", "import"]
    assert all(row["median"] > 0 for name, row in rows.items() if name != "inline-2048")
    assert "1500 images" in rows["inline-2048"]["skipped"]
    assert rows["inline-256"]["over_plain"] > 0
    assert {"cpu", "numpy", "blas", "ray", "torch"} <= set(found["environment"])
    assert "import distsgd" in {bar["what"] for bar in found["bars"]}
    assert found["others_busy"] >= 0 and "round 1 of 1: numpy" in done.stderr
    written = (tmp_path / "bench.md").read_text()
    assert found["command"] in written and "ours, inline, 256" in written


def test_tables_for_people(distsgd: Run) -> None:
    done = distsgd(*QUICK, "--only", "numpy,inline-256")
    assert done.returncode == 0, done.stderr
    assert "one plain numpy loop, 256" in done.stdout and "Bars" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("--only", "abacus"), "--only"),
        (("--rounds", "0"), "--rounds"),
        (("--seconds", "0"), "--seconds"),
        (("--output", "bench.txt"), "--output"),
        (("--output", "nowhere/bench.md"), "--output"),
    ],
)
def test_wrong_options_are_refused_at_once(
    distsgd_here: Run, arguments: tuple[str, ...], flag: str
) -> None:
    done = distsgd_here(*QUICK, *arguments)
    assert done.returncode == 2 and flag in done.stderr and done.stdout == ""


@pytest.mark.ray
def test_workers_are_measured_and_leave_nothing(distsgd: Run) -> None:
    done = distsgd(*QUICK, "--only", "bsp-2-64", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["median"] > 0, row
    assert row["channel"]
