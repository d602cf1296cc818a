"""Runs are told apart, sorted, filtered, compared and removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import Run, on_sample

import distsgd
from distsgd.errors import RunError, UsageError
from distsgd.runs.folder import find_run, list_runs, runs_home
from distsgd.runs.listing import RunSummary, differing, find_runs
from distsgd.runs.removal import check_removable, remove_run


def summary(name: str, **given: object) -> RunSummary:
    settings = given.pop("settings", {})
    usual = {"run_dir": f"/runs/{name}", "state": "finished", "created": name, **given}
    return RunSummary(name=name, settings=settings, **usual)  # type: ignore[arg-type]


RUNS = [
    summary("a", test_accuracy=0.3, seconds=3.0, test_loss=1.9, settings={"learning_rate": 0.1},
            tags=("night",)),
    summary("b", test_accuracy=0.4, seconds=1.0, settings={"learning_rate": 0.01}),
    summary("c", state="dead", settings={"learning_rate": 0.02, "elastic": True}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "abc"),
        ({"reverse": True}, "cba"),
        ({"sort": "accuracy"}, "bac"),
        ({"sort": "accuracy", "reverse": True}, "abc"),
        ({"sort": "time"}, "bac"),
        ({"sort": "loss"}, "abc"),
        ({"sort": "learning-rate"}, "bca"),
        ({"where": ["learning_rate=1e-2"]}, "b"),
        ({"where": ["elastic=true"]}, "c"),
        ({"where": ["learning_rate=0.1", "elastic=true"]}, ""),
        ({"state": "dead"}, "c"),
        ({"tag": "night"}, "a"),
    ],
)
def test_sorted_and_filtered(asked: dict[str, object], expected: str) -> None:
    assert "".join(run.name for run in find_runs(RUNS, **asked)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"sort": "colour"}, "sort cannot be colour"),
        ({"where": ["loss"]}, "loss has no value"),
        ({"where": ["lr=1"]}, "learning_rate"),
        ({"state": "done"}, "state cannot be done"),
    ],
)
def test_what_names_nothing_is_refused(asked: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_runs(RUNS, **asked)  # type: ignore[arg-type]


def test_settings_that_differ() -> None:
    assert differing(RUNS[:2]) == {"learning_rate": [0.1, 0.01]}
    assert differing([*RUNS[:1], summary("damaged")]) == {}
    assert differing(RUNS)["elastic"] == [None, None, True]


def test_a_sweep_in_the_list_and_compared(distsgd_here: Run) -> None:
    for rate in (0.01, 0.001, 1e-6):
        config = on_sample(workers=0, epochs=2, learning_rate=rate)
        distsgd.train(config=config, run_dir=runs_home() / f"rate-{rate}")
    shown = distsgd_here("runs", "list", "--sort", "accuracy")
    lines = [line for line in shown.stdout.splitlines() if "rate-" in line]
    assert len(set(lines)) == 3 and "learning_rate" in shown.stdout, shown.stdout
    best = [run.test_accuracy or 0.0 for run in find_runs(sort="accuracy")]
    assert best == sorted(best, reverse=True) and f"{best[0]:.1%}".rstrip("%") in lines[0]
    done = distsgd_here("runs", "list", "--where", "learning-rate=1e-3", "--json")
    (only,) = json.loads(done.stdout)["runs"]
    assert only["run"] == "rate-0.001" and only["settings"]["learning_rate"] == 0.001
    names = ("rate-0.01", "rate-0.001")
    compared = distsgd_here("runs", "compare", *names, "--epochs").stdout
    assert "learning_rate" in compared and "batch_size" not in compared
    found = json.loads(distsgd_here("runs", "compare", *names, "--json").stdout)
    assert found["differ"] == {"learning_rate": [0.01, 0.001]}
    for run in found["runs"]:
        last = run["epoch_rows"][-1]
        assert f"{last['test_accuracy']:.1%}".replace("%", " %") in compared
        assert (last["epoch"], last["test_accuracy"]) == (2, run["test_accuracy"])
    assert "all settings are the same" in distsgd_here("runs", "compare", *names[:1] * 2).stdout
    assert distsgd_here("runs", "compare", names[0]).returncode == 2


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = on_sample(workers=0, epochs=1)
    return Path(distsgd.train(config=config, run_dir=tmp_path / "elsewhere").run_dir)


def test_removed_with_its_link(run: Path, distsgd_here: Run) -> None:
    asked = distsgd_here("runs", "rm", str(run))
    assert asked.returncode == 2 and "Give --yes" in asked.stderr and run.exists()
    done = distsgd_here("runs", "rm", str(run), str(run), "--yes", "--json")
    assert json.loads(done.stdout)["removed"] == [str(run)], done.stderr
    assert not run.exists() and not list(runs_home().iterdir()) and not list(list_runs())
    assert [path.name for path in run.parent.iterdir() if "removed" in path.name] == []


def test_asked_first(run: Path, distsgd_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distsgd.cli.output.confirmed", lambda question: False)
    monkeypatch.setattr("distsgd.cli.runs_commands.confirmed", lambda question: False)
    done = distsgd_here("runs", "rm", str(run))
    assert done.returncode == 1 and "nothing was removed" in done.stderr and run.exists()


def test_nothing_else_is_removed(run: Path, tmp_path: Path, distsgd_here: Run) -> None:
    folder, precious = find_run(run), tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("words")
    for name, make in (
        ("notes.txt", lambda path: path.write_text("words")),
        ("checkpoints/mine.npz", lambda path: path.write_text("words")),
        ("report.json", lambda path: (path.unlink(), path.symlink_to(precious / "thesis.tex"))),
        ("link", lambda path: path.symlink_to(precious)),
    ):
        kept = (run / name).read_bytes() if (run / name).exists() else None
        make(run / name)
        with pytest.raises(RunError, match=f"not of a run: {name}"):
            remove_run(folder)
        (run / name).unlink()
        if kept is not None:
            (run / name).write_bytes(kept)
    folder.hold()
    with pytest.raises(RunError, match="is running"):
        remove_run(find_run(run))
    folder.release()
    (precious / "config.json").write_text("{}")
    done = distsgd_here("runs", "rm", str(run), str(precious), "--yes")
    assert done.returncode == 1 and "is damaged" in done.stderr and run.exists()
    assert check_removable(folder) > 0 and (precious / "thesis.tex").read_text() == "words"
