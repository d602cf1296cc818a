"""A search: its trials have the bits of their own runs, and it goes on after a kill."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import Run, command_line, image_format, wait_for

import distsgd
from distsgd.data.locations import SAMPLE
from distsgd.errors import CorruptDataError, DistsgdError, UsageError
from distsgd.tuning.tune import TuneFollower
from distsgd.tuning.tune_plan import Rung, rungs_of, tune_plan
from distsgd.tuning.tune_results import EpochRecord

QUICK: dict[str, Any] = {"dataset": "sample", "workers": 0, "epochs": 2}
FLAGS = ["--dataset", "sample", "--workers", "0", "--epochs", "2"]


class Epochs(TuneFollower):
    """Counts the epochs of trials that are trained, and may end the search."""

    def __init__(self, most: int = 1000) -> None:
        self.trained: list[tuple[int, int]] = []
        self._most, self._reading = most, False

    def began(self, plan: Any, folder: Path, epochs: int) -> None:
        self._reading = epochs > 0

    def epochs(self, records: Sequence[EpochRecord]) -> None:
        if not self._reading:
            self.trained += [(one.trial, one.epoch) for one in records]
        self._reading = False
        if len(self.trained) >= self._most:
            raise InterruptedError


def test_the_best_file_repeats_the_trial_and_the_final_training(
    distsgd_here: Run, tmp_path: Path
) -> None:
    line = ["tune", *FLAGS, "--trials", "3", "--search", "learning_rate=log:0.003..0.06"]
    done = distsgd_here(*line, "--study", "s", "--plot", "f.svg", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["final"] is None and not (tmp_path / "s" / "runs").exists()
    assert image_format(tmp_path / "f.svg") == "SVG"
    assert [trial["rank"] for trial in found["trials"]] == [1, 2, 3]
    assert found["best"] == found["trials"][0]
    accuracies = [trial["validation_accuracy"] for trial in found["trials"]]
    assert accuracies == sorted(accuracies, reverse=True)
    config = ["train", "--config", "s/best.toml", "--json"]
    trial = json.loads(distsgd_here(*config, "--validation", "0.1").stdout)
    assert trial["validation_accuracy"] == found["best"]["validation_accuracy"]
    shown = distsgd_here(*line, "--study", "s", "--final")
    assert "6 before" in shown.stdout and "best first" in shown.stdout
    final = json.loads(distsgd_here("tune", "--resume", "s", "--final", "--json").stdout)["final"]
    again = json.loads(distsgd_here(*config).stdout)
    assert final["weights_sha256"] == again["weights_sha256"]
    assert final["test_accuracy"] == again["test_accuracy"]
    (typed,) = [line for line in shown.stdout.splitlines() if "--config" in line]
    assert distsgd_here(*shlex.split(typed)[2:]).returncode == 0
    for file in (tmp_path / "s").rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_a_search_that_breaks_off_goes_on_where_it_was(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"trials": 4, "study": tmp_path / "s", **QUICK}
    asked |= {"search": ["learning_rate=log:0.003..0.06", "batch_size=128,256"]}
    broken = Epochs(most=3)
    with pytest.raises(InterruptedError):
        distsgd.tune(**asked, follower=broken)
    rest = Epochs()
    found = distsgd.tune(**asked, follower=rest)
    assert sorted(broken.trained + rest.trained) == [(t, e) for t in (1, 2, 3, 4) for e in (1, 2)]
    assert found.repeated == len(broken.trained)
    whole = distsgd.tune(**{**asked, "study": tmp_path / "whole"})
    times = {"seconds"}
    for one, other in zip(found.trials, whole.trials, strict=True):
        assert {n: v for n, v in vars(one).items() if n not in times} == {
            n: v for n, v in vars(other).items() if n not in times
        }
    assert not list((tmp_path / "s" / "states").iterdir())
    nothing = Epochs()
    assert distsgd.tune(**asked, follower=nothing).best == found.best and not nothing.trained


def test_without_its_states_a_trial_is_trained_again(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"trials": 2, "study": tmp_path / "s", **QUICK}
    with pytest.raises(InterruptedError):
        distsgd.tune(**asked, follower=Epochs(most=2))
    (file,) = (tmp_path / "s" / "states").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    rest = Epochs()
    distsgd.tune(**asked, follower=rest)
    assert sorted(rest.trained) == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_halving_drops_the_worst(tmp_path: Path) -> None:
    follower = Epochs()
    found = distsgd.tune(
        ["learning_rate=log:1e-5..0.06"], method="halving", trials=9, study=tmp_path / "s",
        follower=follower, **{**QUICK, "epochs": 9},
    )  # fmt: skip
    assert sorted(one.epochs for one in found.trials) == [1] * 6 + [3] * 2 + [9]
    assert [one.status for one in found.trials] == ["finished"] + ["dropped"] * 8
    assert len(follower.trained) == 6 * 1 + 2 * 3 + 9
    assert found.best is not None and found.best.settings["learning_rate"] > 1e-3
    with (tmp_path / "s" / "trials.csv").open(encoding="utf-8") as file:
        assert [row["trial"] for row in csv.DictReader(file)] == list("123456789")


def test_rungs() -> None:
    assert rungs_of("halving", 16, 10, 3) == (Rung(1, 6), Rung(3, 2), Rung(10, 2))
    assert rungs_of("halving", 2, 10, 3) == (Rung(10, 2),)
    assert rungs_of("halving", 64, 4, 2) == (Rung(1, 32), Rung(2, 16), Rung(4, 16))
    assert rungs_of("random", 16, 10, 3) == (Rung(10, 16),)


def test_trials_are_spread_over_every_axis_and_follow_from_the_seed() -> None:
    asked = ["momentum=0..0.8", "hidden=0,50"]
    given = {"dataset": "sample", "optimizer": "momentum"}
    plan = tune_plan(asked, trials=8, settings=given)
    drawn = sorted(trial.values["momentum"] for trial in plan.trials)
    assert all(i / 10 <= value <= (i + 1) / 10 for i, value in enumerate(drawn))
    assert sum(trial.values["hidden"] == 50 for trial in plan.trials) == 4
    assert {trial.config.model for trial in plan.trials} == {"linear", "mlp:50"}
    assert plan.definition == tune_plan(asked, trials=8, settings=given).definition
    assert plan.trials != tune_plan(asked, trials=8, settings={**given, "seed": 1}).trials
    usual = tune_plan(settings={"dataset": "sample"})
    assert len(usual.trials) == 16 and usual.config.validation == 0.1
    assert [one.name for one in usual.axes] == ["learning_rate", "regularization"]
    grid = tune_plan(["learning_rate=log:0.01..1:3", "loss=svm,softmax"], method="grid",
                     settings={"dataset": "sample"})  # fmt: skip
    assert len(grid.trials) == 6


def test_the_test_set_is_not_touched(tmp_path: Path) -> None:
    """It may be damaged until the final training."""
    data = shutil.copytree(SAMPLE, tmp_path / "data")
    for shard in data.glob("test*.arrow"):
        shard.chmod(0o600)
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    asked: dict[str, Any] = {"trials": 2, "study": tmp_path / "s", **QUICK, "dataset": data}
    assert distsgd.tune(**asked).best is not None
    with pytest.raises(CorruptDataError):
        distsgd.tune(**asked, final=True)


def test_what_diverges_is_ranked_last_and_all_of_it_is_an_error(tmp_path: Path) -> None:
    found = distsgd.tune(["learning_rate=0.01,1e35"], method="grid", study=tmp_path / "s", **QUICK)
    assert [trial.status for trial in found.trials] == ["finished", "diverged"]
    with pytest.raises(DistsgdError, match="all 2 trials have diverged"):
        distsgd.tune(["learning_rate=1e34,1e35"], method="grid", study=tmp_path / "t", **QUICK)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--search", "consistency=bsp,asp"], "consistency cannot vary here"),
        (["--search", "epochs=1,2"], "epochs cannot vary here"),
        (["--search", "lr=0.1"], "Did you mean learning_rate?"),
        (["--search", "learning_rate="], "has no values"),
        (["--search", "loss=svm", "--loss", "svm"], "loss is given twice"),
        (["--search", "hidden=5", "--search", "model=linear"], "cannot both be searched"),
        (["--search", "momentum=0.5,0.9"], "does not go with --optimizer sgd"),
        (["--method", "genetic"], "--method genetic is no way to search"),
        (["--method", "grid"], "a grid takes all values"),
        (["--method", "halving", "--reduction", "1"], "--reduction 1 drops nothing"),
        (["--trials", "0"], "--trials 0 is no number of trials"),
        (["--validation", "0"], "leaves no rows to choose by"),
        (["--consistency", "asp"], "--consistency asp cannot be trained together"),
        (["--learning-rate", "1", "--regularization", "0"], "there is nothing to search"),
        (["--resume", "latest", "--trials", "3"], "--resume does not go with --trials"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    words: list[str], problem: str, distsgd_here: Run
) -> None:
    base = [] if "--resume" in words else FLAGS
    done = distsgd_here("tune", *base, *words)
    assert done.returncode in (1, 2), done.stderr
    assert problem in done.stderr and done.stderr.count("\n") == 1


def test_a_sweep_and_a_search_are_different_studies(tmp_path: Path) -> None:
    distsgd.sweep(["loss=svm"], study=tmp_path / "s", **QUICK)
    with pytest.raises(UsageError, match="is the folder of another study: it is a sweep"):
        distsgd.tune(trials=2, study=tmp_path / "s", **QUICK)
    with pytest.raises(UsageError, match="is a sweep"):
        distsgd.tune(resume=tmp_path / "s")


def test_after_a_kill_the_same_command_goes_on(tmp_path: Path) -> None:
    line = command_line("tune", *FLAGS[:-1], "60", "--trials", "2", "--study", tmp_path / "s")
    line += ["--json", "--batch-size", "32"]
    log = tmp_path / "s" / "study.jsonl"
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") > 3)
        os.kill(killed.pid, signal.SIGKILL)
    before = [json.loads(one) for one in log.read_bytes().splitlines(keepends=True)[1:]
              if one.endswith(b"\n")]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["repeated"] == 2 * len(before) and found["epochs"] == 120
    lines = map(json.loads, log.read_bytes().splitlines())
    trained = [(one["trial"], one["epoch"]) for row in lines for one in row.get("results", [])]
    assert len(trained) == len(set(trained)) == 120
