"""A sweep: every combination with every seed, resumed without repeating, and its tables."""

from __future__ import annotations

import csv
import json
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support import Run, command_line, image_format, wait_for

import distsgd
from distsgd.errors import RunError, StorageError
from distsgd.tuning import sweep as module
from distsgd.tuning.sweep import SweepFollower
from distsgd.tuning.sweep_plan import sweep_plan

QUICK: dict[str, Any] = {"dataset": "sample", "workers": 0, "epochs": 1}
FLAGS = ["--dataset", "sample", "--workers", "0", "--epochs", "1"]


class Names(SweepFollower):
    def __init__(self) -> None:
        self.began_: list[tuple[int, bool]] = []

    def began(self, point: Any, resumes: bool) -> None:
        self.began_.append((point.number, resumes))


def test_a_training_of_a_sweep_has_the_bits_of_one_alone_and_ended_ones_are_kept(
    tmp_path: Path,
) -> None:
    vary = {"loss": ["softmax", "svm"]}
    found = distsgd.sweep(vary, seeds=2, study=tmp_path / "s", **QUICK)
    assert found.status == "finished" and [row.name for row in found.rows] == ["softmax", "svm"]
    assert [(run.name, run.seed) for run in found.runs] == [
        ("softmax", 0), ("softmax", 1), ("svm", 0), ("svm", 1),
    ]  # fmt: skip
    alone = distsgd.train(loss="svm", seed=1, **QUICK)
    assert found.runs[3].weights_sha256 == alone.weights_sha256
    accuracy = found.rows[1].test_accuracy
    assert accuracy is not None and accuracy.deviation is not None
    assert accuracy.least <= accuracy.mean <= accuracy.most
    assert distsgd.audit(found.runs[0].run_dir).updates > 0
    again = distsgd.sweep(vary, seeds=2, study=tmp_path / "s", **QUICK)
    assert again.repeated == 4 and again.runs == found.runs
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
    for file in (tmp_path / "s").rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_tables_are_tidy(tmp_path: Path) -> None:
    study = tmp_path / "s"
    found = distsgd.sweep(["batch_size=64,128"], study=study, **{**QUICK, "epochs": 2})
    with (study / "epochs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["batch_size"], row["epoch"]) for row in rows] == [
        ("1", "64", "1"), ("1", "64", "2"), ("2", "128", "1"), ("2", "128", "2"),
    ]  # fmt: skip
    with pa.ipc.open_file(study / "runs.arrow") as reader:
        table = reader.read_all()
    assert table["test_accuracy"].to_pylist() == [run.test_accuracy for run in found.runs]
    assert json.loads(table.schema.metadata[b"definition"])["vary"] == [["batch_size", [64, 128]]]


def test_what_diverges_or_fails_is_a_row_and_the_latter_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, full = module.train_with, True

    def on_a_full_disk(config: Any, *others: Any) -> Any:
        if full and config.batch_size == 64:
            raise StorageError("the disk is full", "Make room")
        return train(config, *others)

    monkeypatch.setattr(module, "train_with", on_a_full_disk)
    vary = ["learning_rate=0.01,1e30", "batch_size=64,128"]
    asked: dict[str, Any] = {"study": tmp_path / "s", **QUICK}
    found = distsgd.sweep(vary, **asked)
    assert [run.status for run in found.runs] == ["failed", "finished", "failed", "diverged"]
    assert "disk is full" in found.runs[0].problem and found.rows[0].test_accuracy is None
    assert (found.rows[3].diverged, found.rows[3].finished) == (1, 0)
    full, follower = False, Names()
    found = distsgd.sweep(vary, follower=follower, **asked)
    assert [run.status for run in found.runs] == ["finished", "finished", "diverged", "diverged"]
    assert [number for number, _ in follower.began_] == [1, 3]


def test_policies_and_what_belongs_to_them() -> None:
    plan = sweep_plan(
        ["consistency=bsp,ssp:3,ssp,local:8"], 2,
        {"dataset": "sample", "staleness": 5, "seed": 7, "epochs": 1},
    )  # fmt: skip
    configs = [point.config for point in plan.points]
    assert [point.name for point in plan.points[::2]] == ["bsp", "ssp:3", "ssp", "local:8"]
    assert [config.staleness for config in configs[2:6:2]] == [3, 5]
    assert configs[6].local_steps == 8 and plan.seeds == (7, 8)
    same = sweep_plan(["consistency=bsp,asp", "staleness=1,2"], 1, {"dataset": "sample"})
    assert [point.name for point in same.points] == ["bsp", "asp"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--vary", "lr=0.1"], "Did you mean learning_rate?"),
        (["--vary", "seed=1,2"], "seed cannot vary here. Give the number of seeds"),
        (["--vary", "loss=cubic"], "--vary: loss cannot be cubic"),
        (["--vary", "learning_rate=log:0.1..1"], "a sweep takes all values"),
        (["--vary", "loss=svm", "--loss", "svm"], "loss is given twice"),
        (["--seeds", "0"], "--seeds 0 is no number of seeds"),
        (["--plot", "a.png", "--figure", "timeline"], "--figure cannot be timeline"),
        (["--resume", "nothing"], "is no study"),
        (["--resume", "latest", "--seeds", "2"], "--resume does not go with --seeds"),
        (["--study", "taken"], "is no study"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    words: list[str], problem: str, distsgd_here: Run, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    base = [] if "--resume" in words else FLAGS
    done = distsgd_here("sweep", *base, *words)
    assert done.returncode in (1, 2) and not done.stdout
    assert problem in done.stderr and done.stderr.count("\n") == 1


def test_the_command_draws_prints_json_and_refuses_another_study(
    distsgd_here: Run, tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text(
        'dataset = "sample"\nworkers = 0\nepochs = 1\n[vary]\nloss = ["softmax", "svm"]\n'
    )
    here = ["--study", "study", "--seeds", "2"]
    done = distsgd_here("sweep", "--config", "s.toml", *here, "--plot", "f.png", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["runs"]) == 4
    assert image_format(tmp_path / "f.png") == "PNG"
    again = distsgd_here("sweep", "--resume", "study")
    assert "softmax" in again.stdout and "±" in again.stdout and "4 had ended" in again.stdout
    other = distsgd_here("sweep", *FLAGS, "--vary", "loss=svm", *here)
    assert other.returncode == 2 and "is the folder of another study: its vary is" in other.stderr


def test_a_study_has_one_process_and_damage_is_an_error(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"vary": ["loss=svm"], "study": tmp_path / "s", **QUICK}

    class Twice(SweepFollower):
        def began(self, point: Any, resumes: bool) -> None:
            with pytest.raises(RunError, match="is running"):
                distsgd.sweep(**asked)

    distsgd.sweep(follower=Twice(), **asked)
    lines = tmp_path / "s" / "study.jsonl"
    lines.write_bytes(lines.read_bytes().replace(b'{"begun"', b'{"begun', 1))
    with pytest.raises(RunError, match="is damaged"):
        distsgd.sweep(**asked)


def test_after_a_kill_the_same_command_goes_on(tmp_path: Path) -> None:
    """The training that was killed is resumed, and ends with the bits of an undisturbed one."""
    words = [*FLAGS[:-1], "40", "--set", "log_every=1", "--seeds", "2"]
    line = command_line("sweep", *words, "--study", tmp_path / "s", "--json")
    metrics = tmp_path / "s" / "runs" / "002-as-given-seed-1" / "metrics.jsonl"
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        wait_for(lambda: metrics.exists() and b'"epoch"' in metrics.read_bytes())
        os.kill(killed.pid, signal.SIGKILL)
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["repeated"] == 1 and len(found["runs"]) == 2
    alone = distsgd.train(**{**QUICK, "epochs": 40}, seed=1, log_every=1)
    assert found["runs"][1]["weights_sha256"] == alone.weights_sha256
    assert Path(found["runs"][1]["run_dir"]).name == "002-as-given-seed-1"


def test_policies_on_one_ray(shared_ray: None, tmp_path: Path) -> None:
    found = distsgd.sweep(["consistency=bsp,asp"], study=tmp_path / "s", **{**QUICK, "workers": 1})
    assert [run.status for run in found.runs] == ["finished", "finished"]
