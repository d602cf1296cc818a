"""What keeps a run folder usable: old settings, resumed runs, bounded journals, crash points."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import Run

from distsgd.cli.runs_commands import _checkpoints, _shown
from distsgd.errors import JournalError, RunError
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.runs.checkpoint import checkpoint_versions, read_checkpoint, write_checkpoint
from distsgd.runs.folder import RunFolder
from distsgd.runs.journal import JOURNAL, JournalWriter, Mark, first_digest, read_journal
from distsgd.runs.opened_run import open_run
from distsgd.training.evaluation import evaluate
from distsgd.training.recovery import find_tail
from distsgd.training.training import resume, train

SCRIPT = Path(__file__).parents[2] / "scripts" / "faults.py"


def a_run(folder: Path, **settings: Any) -> str:
    given = {"workers": 0, "epochs": 3, "batch_size": 128, **settings}
    return train("sample", run_dir=folder, **given).weights_sha256


def cut(run: Path, updates: int) -> None:
    """As if it had been killed after so many updates."""
    lines = (run / JOURNAL).read_bytes().splitlines(keepends=True)
    (run / JOURNAL).write_bytes(b"".join(lines[:updates]) + b'{"v": 3')
    for version in checkpoint_versions(run / "checkpoints"):
        if version > updates:
            (run / "checkpoints" / f"step-{version:09d}.npz").unlink()
    (run / "report.json").unlink()


def test_a_run_of_a_version_with_fewer_settings_goes_on(tmp_path: Path) -> None:
    """Its journal is chained to the settings that it has, not to those of today."""
    run = tmp_path / "run"
    whole = a_run(run)
    content = RunFolder(run).read("config.json")
    for name in ("journal", "checkpoint_seconds", "cache"):
        del content["settings"][name]
    RunFolder(run).write("config.json", content)
    opened = open_run(run)
    before = first_digest({**content["settings"], "seed": 1}, opened.dataset.manifest.digest)
    assert opened.first != before
    lines = [json.loads(line) for line in (run / JOURNAL).read_text().splitlines()]
    (run / JOURNAL).unlink()
    writer = JournalWriter(run, Mark(opened.first))
    for line in lines:  # as that version would have written them
        writer._append({name: line[name] for name in "vscq"})
    writer.close()
    for path in (run / "checkpoints").glob("*.npz"):
        if path.stem != "step-000000000":
            path.unlink()
    model = read_checkpoint(run / "checkpoints" / "step-000000000.npz")
    write_checkpoint(run / "checkpoints", replace(model, place=None))
    lines_left = (run / JOURNAL).read_bytes().splitlines(keepends=True)[:17]
    (run / JOURNAL).write_bytes(b"".join(lines_left))
    (run / "report.json").unlink()
    assert resume(run).weights_sha256 == whole
    assert audit(run).complete and replay(run).weights_sha256 == whole


def test_settings_of_a_later_version_are_named(tmp_path: Path) -> None:
    a_run(tmp_path / "run", epochs=1)
    folder = RunFolder(tmp_path / "run")
    content = folder.read("config.json")
    content["settings"]["teleport"] = True
    folder.write("config.json", content)
    with pytest.raises(RunError, match="does not know: teleport"):
        audit(tmp_path / "run")


def test_a_resume_goes_on_with_what_the_last_one_had(distsgd_here: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    longer = a_run(tmp_path / "longer", epochs=5, schedule="constant")
    a_run(run, schedule="constant")
    assert resume(run, servers=2, channel="tcp", epochs=4).servers == 2
    cut(run, 40)
    result = resume(run, epochs=5)
    assert (result.servers, result.epochs, result.weights_sha256) == (2, 5, longer)
    assert find_tail(open_run(run)).settings.channel == "tcp"
    assert replay(run).weights_sha256 == longer and audit(run).epochs == 5
    shown = json.loads(distsgd_here("runs", "show", run, "--json").stdout)
    assert [(e["servers"], e["channel"], e["epochs"]) for e in shown["resumed"]] == [
        (2, "tcp", 4), (2, "tcp", 5),
    ]  # fmt: skip


@pytest.mark.ray
def test_another_fleet_and_more_epochs_at_once_twice(tmp_path: Path, shared_ray: None) -> None:
    run = tmp_path / "run"
    longer = a_run(tmp_path / "longer", epochs=7, schedule="constant")
    a_run(run, schedule="constant")
    cut(run, 17)
    first: dict[str, Any] = {"workers": 3, "servers": 2, "channel": "tcp", "epochs": 5}
    assert resume(run, **first).workers == 3
    cut(run, 41)
    second: dict[str, Any] = {"workers": 2, "servers": 3, "channel": "ray", "epochs": 7}
    assert resume(run, **second).weights_sha256 == longer
    assert replay(run).weights_sha256 == longer and audit(run).complete


@pytest.mark.parametrize("policy", ["bsp", "ssp", "asp", "backup", "local"])
def test_a_resume_begins_with_the_newest_checkpoint(policy: str, tmp_path: Path) -> None:
    """Of those within the epoch, that is; and reads no more of the journal than follows it."""
    run = tmp_path / "run"
    whole = a_run(run, consistency=policy, checkpoint_seconds=1e-9, epochs=2)
    updates = (run / JOURNAL).read_bytes().count(b"\n")
    tail = find_tail(open_run(run))
    assert tail.model.version == updates and tail.entries == []
    newest = checkpoint_versions(run / "checkpoints")[-1]
    (run / "checkpoints" / f"step-{newest:09d}.npz").unlink()
    (run / "report.json").unlink()
    tail = find_tail(open_run(run))
    assert 0 < len(tail.entries) < 3
    assert resume(run).weights_sha256 == whole


@pytest.mark.ray
@pytest.mark.parametrize(("policy", "servers"), [("ssp", 1), ("asp", 2)])
def test_and_so_where_workers_do_not_wait(
    policy: str, servers: int, tmp_path: Path, shared_ray: None
) -> None:
    for attempt in range(5):  # whether the last epoch has a checkpoint within is up to the clock
        run = tmp_path / f"run-{attempt}"
        train(
            "sample", workers=3, servers=servers, epochs=3, batch_size=8, consistency=policy,
            checkpoint_seconds=0.002, run_dir=run,
        )  # fmt: skip
        updates = (run / JOURNAL).read_bytes().count(b"\n")
        if any(version % (updates // 3) for version in checkpoint_versions(run / "checkpoints")):
            break
    sha = replay(run).weights_sha256
    for version in checkpoint_versions(run / "checkpoints")[1:]:
        if version % (updates // 3) == 0:  # ends of epochs
            (run / "checkpoints" / f"step-{version:09d}.npz").unlink()
    found = find_tail(open_run(run))
    assert 0 < found.model.version < updates
    assert found.start(open_run(run)).snapshot.version == updates
    assert sha == resume(run).weights_sha256


def test_a_bounded_journal_says_where_it_begins(distsgd_here: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings: dict[str, Any] = {"epochs": 9, "keep_checkpoints": 2}
    whole = a_run(tmp_path / "whole", **settings)
    assert a_run(run, journal="bounded", **settings) == whole
    assert (run / JOURNAL).stat().st_size < (tmp_path / "whole" / JOURNAL).stat().st_size / 3
    found = audit(run)
    assert (found.updates, found.begins_after, found.complete) == (108, 96, True)
    again = replay(run)
    assert (again.updates, again.weights_sha256) == (12, whole)
    assert "after update 96" in distsgd_here("audit", run).stdout
    shutil.copytree(run / "checkpoints", tmp_path / "copy")
    (tmp_path / "copy" / "step-000000108.npz").unlink()
    cut(run, 5)  # a line that says what was dropped, and four updates
    for path in (tmp_path / "copy").glob("*"):
        (run / "checkpoints" / path.name).write_bytes(path.read_bytes())
    assert resume(run).weights_sha256 == whole and replay(run).weights_sha256 == whole


def test_lines_before_a_mark_can_be_dropped(tmp_path: Path) -> None:
    writer, marks = JournalWriter(tmp_path, Mark("first")), []
    for number in range(6):
        writer._append({"v": number, "s": 0, "c": [], "q": []})
        marks.append(writer.mark())
        if number % 2:
            writer.drop_before(marks[number - 1])
    writer.close()
    assert [mark for _, mark in read_journal(tmp_path, marks[4])] == [marks[5]]
    with pytest.raises(JournalError, match="missing"):
        list(read_journal(tmp_path, marks[3]))


def test_who_comes_second_is_told(tmp_path: Path) -> None:
    """Even if the run was free when its status was looked at."""
    a_run(tmp_path / "run", epochs=1)
    first = RunFolder(tmp_path / "run")
    first.hold()
    with pytest.raises(RunError, match="is running"):
        RunFolder(tmp_path / "run").hold()
    first.release()


def test_the_best_epoch_is_kept_and_can_be_evaluated(distsgd_here: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    a_run(run, epochs=9, keep_checkpoints=2, learning_rate=0.1, validation=0.2)
    shown = json.loads(distsgd_here("runs", "show", run, "--json").stdout)
    best = max(row["validation_accuracy"] for row in shown["epochs"])
    found = evaluate(run, split="validation", best=True)
    assert shown["best"]["validation_accuracy"] == best == found.accuracy
    assert evaluate(run, best=True).step == shown["best"]["version"]


def test_of_very_many_epochs_those_with_a_checkpoint_are_shown() -> None:
    epochs = [{"epoch": epoch, "version": 3 * epoch} for epoch in range(1, 1002)]
    assert _shown([0, 6, 3003], epochs[:1000]) == epochs[:1000]
    assert _shown([0, 6, 3003], epochs) == [epochs[1], epochs[1000]]
    assert _checkpoints([0, 6, 3003], epochs) == "3; none of 999 other epochs"
    assert _checkpoints([0, 3], epochs[:1]) == "2"


def test_some_crash_points() -> None:
    """See the script."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "crash", "4", "--first", "100"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | 4 | 4 |" in done.stdout
