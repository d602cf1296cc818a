from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import Run

import distsgd
from distsgd.figures.charts import Chart
from distsgd.figures.of_runs import AXES, build
from distsgd.runs.folder import RunFolder, runs_home
from distsgd.runs.history import HistoryReader
from distsgd.runs.listing import RunSummary, forks_of, tree
from distsgd.watch.listing import Listing, identity

TRAIN = ("train", "--dataset", "sample", "--workers", "0", "--set", "log_every=1")


@pytest.fixture
def family(distsgd_here: Run, tmp_path: Path) -> list[Path]:
    """A run of three epochs, a fork after the first with another learning rate, and its fork."""
    base, fork, again = (tmp_path / name for name in ("base", "fork", "again"))
    distsgd_here(*TRAIN, "--epochs", "3", "--run-dir", base)
    rate = ("--set", "learning_rate=0.002")
    distsgd_here("fork", base, "--at", "epoch:1", *rate, "--run-dir", fork)
    distsgd_here(
        "fork", fork, "--at", "epoch:2", "--set", "learning_rate=0.001", "--run-dir", again
    )
    return [base, fork, again]


def test_figures_draw_one_trunk_and_its_branches(family: list[Path], distsgd_here: Run) -> None:
    base, fork, again = (HistoryReader(path).look() for path in family)
    assert fork.parent is not None and fork.parent["epoch"] == 1
    assert [event["kind"] for event in fork.events] == []
    assert fork.epochs["epoch"] == [2, 3]  # its own part alone
    for x in AXES:
        alone, both, leaves = (build("loss", runs, x)
                               for runs in ([fork], [base, fork], [fork, again]))  # fmt: skip
        assert isinstance(alone, Chart) and isinstance(both, Chart) and isinstance(leaves, Chart)
        test = alone.lines[-1]
        assert test.before == "pale" and test.place == 0 and len(test.x) == 3
        assert test.x[0] == pytest.approx(test.fork) and list(test.x) == sorted(test.x)  # type: ignore[type-var]
        assert test.y[0] == base.epochs["test_loss"][0]
        assert [line.before for line in both.lines if line.fork is not None] == ["hidden"] * 2
        (mark,) = both.marks
        assert mark.kind == "fork" and "learning_rate" in mark.text and " -> 0.002" in mark.text
        trunks = [line for line in leaves.lines if line.run == "base"]
        assert len(trunks) == 2 and trunks[0].x[-1] == pytest.approx(fork.parent[x])

    shutil.rmtree(family[0])  # what is left is drawn from where it begins
    left = HistoryReader(family[1]).look()
    assert left.parent is not None and left.parent["gone"] and left.trunk == []
    assert left.parent["epoch"] == pytest.approx(1) and left.parent["seconds"] > 0
    assert build("loss", [left]).to_json()["lines"][-1]["x"] == [2, 3]
    assert "which is gone" in distsgd_here("runs", "list").stdout


def test_a_parent_that_was_moved_is_found(family: list[Path]) -> None:
    moved = family[0].rename(runs_home() / "moved")
    left = HistoryReader(family[1]).look()
    assert left.parent is not None and not left.parent["gone"] and len(left.trunk) == 1
    assert left.parent["path"] == str(moved)
    assert [branch for branch, _ in tree(distsgd.runs())] == ["", "└─ ", "   └─ "]
    assert [name for name, _ in forks_of(RunFolder(moved))] == [str(family[1])]


def test_lists_are_trees(family: list[Path], distsgd_here: Run) -> None:
    base, fork, _ = map(str, family)
    assert [branch for branch, _ in tree(distsgd.runs())] == ["", "└─ ", "   └─ "]
    (found,) = distsgd.runs(where=["parent=base"])
    assert (found.run_dir, found.parent) == (fork, base)
    rows = json.loads(distsgd_here("runs", "list", "--json").stdout)["runs"]
    assert [row["parent"] for row in rows] == [None, base, fork]
    assert (
        rows[1]["forked_at"] == found.forked_at and rows[1]["changed"]["learning_rate"][1] == 0.002
    )
    assert "└─" not in distsgd_here("runs", "list", "--flat").stdout
    shown = json.loads(distsgd_here("runs", "show", base, "--json").stdout)
    assert [one["run"] for one in shown["forks"]] == [fork]
    shown = json.loads(distsgd_here("runs", "show", fork, "--json").stdout)
    assert shown["resumed"] == []
    listed = {row["name"]: row for row in Listing("latest").look()}
    assert listed["again"]["parent"] == identity(family[1])


def test_parents_in_a_circle_are_listed_once() -> None:
    runs = [RunSummary(name=name, run_dir=name, state="dead", created="", settings={}, parent=of)
            for name, of in (("a", "b"), ("b", "a"))]  # fmt: skip
    assert sorted(run.name for _, run in tree(runs)) == ["a", "b"]
