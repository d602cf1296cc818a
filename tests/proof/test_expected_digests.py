"""Digests that were kept elsewhere are found again, each at its update, or the audit fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import Run

from distsgd.errors import JournalError, UsageError
from distsgd.proof.audit import audit
from distsgd.runs.checkpoint import checkpoint_path, read_checkpoint, weights_sha256
from distsgd.training import TrainResult, train
from distsgd.training.forking import fork_with
from distsgd.training.results import Reporter


def digests(result: TrainResult) -> list[str]:
    """Those of all lines of a journal."""
    lines = (Path(result.run_dir) / "journal.jsonl").read_text().splitlines()
    return [json.loads(line)["d"] for line in lines]


def w_of(result: TrainResult, update: int) -> str:
    path = checkpoint_path(Path(result.run_dir) / "checkpoints", update)
    return weights_sha256(read_checkpoint(path).weights)


def run(path: Path, **settings: Any) -> TrainResult:
    few: dict[str, Any] = {"workers": 0, "epochs": 2, "batch_size": 250}
    return train("sample", run_dir=path, **{**few, **settings})


def test_each_digest_is_found_at_its_update(tmp_path: Path) -> None:
    result = run(tmp_path / "run")
    lines, where = digests(result), result.run_dir
    found = audit(where, [lines[3], result.weights_sha256, w_of(result, 6), lines[-1]])
    assert [one.update for one in found.expected] == [4, 12, 6, 12]
    assert [one.checkpoint for one in found.expected] == [False, True, True, False]
    assert {one.run_dir for one in found.expected} == {where}
    assert found.head == lines[-1] and found.updates == 12
    assert (found.checkpoint, found.checkpoint_sha256) == (12, result.weights_sha256)
    assert audit(where).expected == ()
    with_comment = f"{found.head}  # record of update 12"
    assert audit(where, with_comment).expected[0].digest == found.head


@pytest.mark.parametrize("wrong", ["0" * 32, "0" * 64])
def test_a_digest_of_another_run_fails(wrong: str, tmp_path: Path) -> None:
    result = run(tmp_path / "run")
    with pytest.raises(JournalError, match=wrong):
        audit(result.run_dir, [result.journal_head or "", wrong])


@pytest.mark.parametrize("wrong", ["", "12", "g" * 32, "A" * 32, "0" * 33, "#" + "0" * 32])
def test_what_is_no_digest_is_refused(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the digest of a record"):
        audit(tmp_path, wrong)


def test_a_beginning_that_was_dropped(tmp_path: Path) -> None:
    settings = {"journal": "bounded", "keep_checkpoints": 2, "epochs": 4}
    result = run(tmp_path / "run", **settings)
    whole = run(tmp_path / "whole", epochs=4)
    assert result.weights_sha256 == whole.weights_sha256
    begin = audit(result.run_dir)
    assert begin.begins_after == 18
    assert audit(result.run_dir, digests(result)[0]).expected[0].update == 18
    with pytest.raises(JournalError, match="before update 18, where the journal begins"):
        audit(result.run_dir, "0" * 32)


def test_the_history_of_a_fork(tmp_path: Path) -> None:
    """Up to the fork that of its parent, and nothing that its parent did later."""
    parent = run(tmp_path / "parent", epochs=3)
    fork = fork_with(
        parent.run_dir, 10, {"learning_rate": 0.001}, Reporter(), run_dir=tmp_path / "fork"
    )
    lines, own = digests(parent), digests(fork)
    kept = [lines[4], w_of(parent, 6), lines[9], own[-1], fork.weights_sha256]
    found = audit(fork.run_dir, kept).expected
    assert [one.update for one in found] == [5, 6, 10, 18, 18]
    assert [Path(one.run_dir).name for one in found] == ["parent"] * 3 + ["fork"] * 2
    for later in (lines[10], parent.weights_sha256):
        with pytest.raises(JournalError, match=later):
            audit(fork.run_dir, later)
    assert audit(fork.run_dir, lines[9], own=True).expected[0].run_dir == fork.run_dir
    with pytest.raises(JournalError, match=lines[4]):
        audit(fork.run_dir, lines[4], own=True)


def test_on_the_command_line(tmp_path: Path, distsgd_here: Run) -> None:
    result = run(tmp_path / "run")
    where, head, sha256 = result.run_dir, result.journal_head, result.weights_sha256
    assert distsgd_here("audit", where, "--head").stdout.splitlines() == [
        f"{head}  # record of update 12", f"{sha256}  # W of the checkpoint of update 12"
    ]  # fmt: skip
    kept = json.loads(distsgd_here("audit", where, "--head", "--json").stdout)
    assert kept == {
        "holds": True, "run_dir": where, "running": False, "updates": 12, "head": head,
        "checkpoint": 12, "checkpoint_sha256": sha256, "expected": [],
    }  # fmt: skip
    done = distsgd_here("audit", where, "--expect", head, "--expect", sha256)
    assert done.returncode == 0
    assert f"{head} is the digest after update 12\n" in done.stdout
    assert f"{sha256} is W of the checkpoint of update 12: compared with the file, nothing was " \
        "recomputed" in done.stdout  # fmt: skip
    again = json.loads(distsgd_here("audit", where, "--expect", head, "--json").stdout)
    assert [one["update"] for one in again["expected"]] == [12]
    before = distsgd_here("audit", where, "--head", head)
    assert before.returncode == 2
    assert "--head takes no digest: did you mean --expect?" in before.stderr
