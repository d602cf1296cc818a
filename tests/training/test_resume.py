"""Resuming a run that was cut short at any byte of its journal."""

from __future__ import annotations

import json
import os
import shutil
import signal
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from distsgd.engine.events import Progress
from distsgd.errors import JournalError, RunError, UsageError
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.runs.checkpoint import checkpoint_path, checkpoint_versions
from distsgd.runs.folder import RunFolder
from distsgd.runs.metrics import MetricsWriter, best_epoch, epoch_rows, seconds_of_steps
from distsgd.runs.opened_run import open_run
from distsgd.training.evaluation import evaluate
from distsgd.training.recovery import find_tail
from distsgd.training.results import EpochRow, Reporter, TrainResult
from distsgd.training.training import resume, scale, train

LOCAL = {"consistency": "local", "local_steps": 4}
POLICIES: dict[str, dict[str, Any]] = {
    "bsp": {},
    "ssp": {"consistency": "ssp"},
    "asp": {"consistency": "asp"},
    "backup": {"consistency": "backup", "backup": 1},
    "local": LOCAL,
    "adam": {"optimizer": "adam"},
    "onebit": {"compress": "onebit"},
    "topk": {"compress": "topk:0.01", "consistency": "ssp"},
    "float64": {"dtype": "float64", "optimizer": "momentum"},
    "exact": {"arithmetic": "exact", "model": "mlp:8", "optimizer": "adam"},
    "exact-onebit": {"arithmetic": "exact", "compress": "onebit", "consistency": "asp"},
    "exact-local": {"arithmetic": "exact", "loss": "svm", **LOCAL, "schedule": "step"},
}


def a_run(folder: Path, **settings: Any) -> str:
    """A whole run; returns the SHA-256 of its W."""
    given = {"workers": 0, "epochs": 3, "batch_size": 128, **settings}
    return train("sample", run_dir=folder, **given).weights_sha256


def cut(run: Path, into: Path, random: Random) -> Path:
    """What is left of a run that was killed when its journal was at a random byte."""
    shutil.copytree(run, into)
    journal = into / "journal.jsonl"
    content = journal.read_bytes()
    content = content[: random.randrange(len(content))]
    journal.write_bytes(content)
    for checkpoint in (into / "checkpoints").glob("step-*.npz"):
        if int(checkpoint.stem.removeprefix("step-")) > content.count(b"\n"):
            checkpoint.unlink()
    (into / "report.json").unlink()
    return into


@pytest.mark.parametrize("policy", POLICIES)
def test_the_end_is_that_of_a_run_that_was_not_cut(policy: str, tmp_path: Path) -> None:
    whole = a_run(tmp_path / "whole", **POLICIES[policy])
    for number in range(4):
        random = Random(f"{policy} {number}")
        run = cut(tmp_path / "whole", tmp_path / str(number), random)
        assert resume(run).weights_sha256 == whole
        assert audit(run).complete
        assert replay(run).weights_sha256 == whole


@pytest.mark.parametrize("policy", ["bsp", "asp", "backup", "onebit", "exact"])
def test_it_may_be_cut_again(policy: str, tmp_path: Path) -> None:
    whole = a_run(tmp_path / "0", **POLICIES[policy])
    for number in range(3):
        cut(tmp_path / str(number), tmp_path / str(number + 1), Random(number))
        result = resume(tmp_path / str(number + 1))
        assert result.weights_sha256 == whole
        assert result.examples_seen == 4500
    assert replay(tmp_path / "3").weights_sha256 == whole


@pytest.mark.ray
def test_with_another_fleet(tmp_path: Path, shared_ray: None) -> None:
    whole = a_run(tmp_path / "whole")
    for number, fleet in enumerate(
        [{"workers": 3}, {"workers": 2, "channel": "tcp", "servers": 2}]
    ):
        run = cut(tmp_path / "whole", tmp_path / str(number), Random(number))
        assert resume(run, **fleet).weights_sha256 == whole  # type: ignore[arg-type]
        assert replay(run).weights_sha256 == whole


def test_more_epochs_are_those_of_a_longer_run(tmp_path: Path) -> None:
    """With a constant learning rate; others depend on the number of steps."""
    longer = a_run(tmp_path / "longer", epochs=5, schedule="constant")
    a_run(tmp_path / "run", schedule="constant")
    result = resume(tmp_path / "run", epochs=5)
    assert result.weights_sha256 == longer and result.epochs == 5
    assert replay(tmp_path / "run").weights_sha256 == longer
    assert audit(tmp_path / "run").epochs == 5
    with pytest.raises(UsageError, match="fewer"):
        resume(tmp_path / "run", epochs=4)


def test_a_schedule_changes_where_epochs_were_added(tmp_path: Path) -> None:
    a_run(tmp_path / "run", epochs=2)
    result = resume(tmp_path / "run", epochs=4)
    assert replay(tmp_path / "run").weights_sha256 == result.weights_sha256


def test_a_finished_run_says_so_and_stays_as_it_is(tmp_path: Path) -> None:
    class Listening(Reporter):
        heard = ""

        def notice(self, text: str) -> None:
            self.heard = text

    whole, reporter = a_run(tmp_path / "run"), Listening()
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    assert resume(tmp_path / "run", reporter=reporter).weights_sha256 == whole
    assert "has finished already" in reporter.heard
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before


def test_a_running_run_is_left_alone(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    folder = RunFolder(tmp_path / "run")
    folder.hold()
    with pytest.raises(RunError, match="is running"):
        resume(tmp_path / "run")
    folder.release()


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole, run = a_run(tmp_path / "run"), tmp_path / "run"
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(lines[:30]))
    (run / "report.json").unlink()
    (run / "checkpoints" / "step-000000036.npz").unlink()
    first, second, third = sorted((run / "checkpoints").iterdir())
    third.write_bytes(third.read_bytes()[:1000])
    assert find_tail(open_run(run)).model.version == 12
    shutil.copytree(run, tmp_path / "other")
    assert resume(run).weights_sha256 == whole
    for checkpoint in (first, second):
        (tmp_path / "other" / "checkpoints" / checkpoint.name).write_bytes(b"")
    with pytest.raises(RunError, match="cannot be resumed"):
        resume(tmp_path / "other")


def test_a_journal_that_was_altered_is_refused(tmp_path: Path) -> None:
    a_run(tmp_path / "whole")
    run = cut(tmp_path / "whole", tmp_path / "cut", Random(5))
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    *_, newest = sorted(int(path.stem[5:]) for path in (run / "checkpoints").iterdir())
    if newest + 1 >= len(lines):
        (run / "checkpoints" / f"step-{newest:09d}.npz").unlink()
        newest -= 1
    altered = json.loads(lines[newest])  # what was before, the audit looks at
    lines[newest] = json.dumps({**altered, "s": altered["s"] + 1}) + "\n"
    (run / "journal.jsonl").write_text("".join(lines))
    with pytest.raises(JournalError):
        resume(run)
    assert "".join(lines) == (run / "journal.jsonl").read_text()


def test_only_so_many_checkpoints_are_kept(tmp_path: Path) -> None:
    """The newest, the first (a replay begins with it), and the best."""
    settings: dict[str, Any] = {"epochs": 9, "keep_checkpoints": 2, "learning_rate": 0.1,
                                "validation": 0.05}  # fmt: skip
    whole = a_run(tmp_path / "run", **settings)
    kept = [int(path.stem[5:]) for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "epoch"]
    best = max(rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))["epoch"]
    assert kept == sorted({0, 12 * best, 12 * 8, 12 * 9})
    assert replay(tmp_path / "run").weights_sha256 == whole


def test_of_many_epochs_a_second_some_have_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the series and the best; the weights, and what a resume ends with, are the same."""
    run = tmp_path / "run"
    settings: dict[str, Any] = {
        "epochs": 16, "learning_rate": 0.1, "schedule": "constant", "batch_size": 500,
        "validation": 0.1,
    }  # fmt: skip
    whole = a_run(tmp_path / "whole", keep_checkpoints=0, **settings)
    monkeypatch.setattr("distsgd.training.keeper._FEW_EPOCHS", 0)
    monkeypatch.setattr("distsgd.training.keeper._EVERY_SECONDS", 1e9)
    for epochs in (12, 16):
        if epochs == 12:
            a_run(run, keep_checkpoints=10, **{**settings, "epochs": epochs})
        else:
            assert resume(run, epochs=epochs).weights_sha256 == whole
        rows = epoch_rows(run / "metrics.jsonl")
        key = ("validation_accuracy", "validation_loss")
        best = max(rows, key=lambda row: (row[key[0]], -row[key[1]]))["version"]
        kept = checkpoint_versions(run / "checkpoints")
        assert evaluate(run, best=True).step == best and {0, best, 3 * epochs} <= set(kept)
        assert len(kept) <= 12 and {row["version"] for row in rows} - set(kept)
        assert replay(run).checkpoints == len(kept) and audit(run).complete
    assert len(checkpoint_versions(tmp_path / "whole" / "checkpoints")) == 17


def test_the_best_epoch_is_one_that_was_saved(tmp_path: Path) -> None:
    """Of those that were not, as many came in a second and then the training was killed, none."""
    (tmp_path / "checkpoints").mkdir()
    checkpoint_path(tmp_path / "checkpoints", 3).touch()
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    row: dict[str, Any] = {"kind": "epoch", "seconds": 1.0, "test_loss": 1.0, "train_loss": 1.0}
    row |= {"train_accuracy": 0.5, "test_accuracy": 0.9, "validation_loss": 1.0}
    writer.write({**row, "epoch": 1, "version": 3, "validation_accuracy": 0.4, "saved": False})
    writer.write({**row, "epoch": 2, "version": 6, "validation_accuracy": 0.5, "saved": False})
    assert best_epoch(tmp_path) == (0.4, -1.0, 3)
    checkpoint_path(tmp_path / "checkpoints", 6).touch()
    assert best_epoch(tmp_path) == (0.5, -1.0, 6)
    writer.write(
        {**row, "epoch": 3, "version": 9, "validation_accuracy": 0.6}
    )  # of which one is missing
    writer.close()
    assert best_epoch(tmp_path) == (0.6, -1.0, 9)


def test_the_beginning_of_a_bounded_journal_stays_while_a_resume_begins(tmp_path: Path) -> None:
    run = tmp_path / "run"
    bad = {"learning_rate": 0.2}  # so that the checkpoint there is not the best
    a_run(run, epochs=3, journal="bounded", keep_checkpoints=1, log_every=4, **bad)

    class Audits(Reporter):
        def progress(self, progress: Progress) -> None:
            assert audit(run).begins_after > 0

    resume(run, epochs=4, reporter=Audits())


def stop_after(updates: int) -> Reporter:
    class Stops(Reporter):
        def progress(self, progress: Progress) -> None:
            if progress.step == updates:
                os.kill(os.getpid(), signal.SIGINT)

    return Stops()


def test_the_time_of_a_run_is_that_of_all_its_parts(tmp_path: Path) -> None:
    """Throughput and seconds go on where they were, in metrics and epochs too."""
    run, rows = tmp_path / "run", list[EpochRow]()

    class Rows(Reporter):
        def epoch(self, row: EpochRow) -> None:
            rows.append(row)

    with pytest.raises(KeyboardInterrupt):
        a_run(run, log_every=1, reporter=stop_after(15))
    first = TrainResult(**RunFolder(run).read("report.json"))
    second = resume(run, reporter=Rows())
    third = resume(run, epochs=5, reporter=Rows())
    parts = (first, second, third)
    assert [part.examples_seen for part in parts] == [2012, 4500, 7500]
    for before, part in pairwise(parts):
        assert part.step_seconds > 0
        assert part.train_seconds == pytest.approx(before.train_seconds + part.step_seconds)
    for part, examples in zip(parts, (2012, 2488, 3000), strict=True):
        assert part.step_examples == examples
        assert part.examples_per_second == pytest.approx(examples / part.step_seconds)
        assert part.wall_seconds > part.startup_seconds + part.step_seconds
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    of_steps = ("progress", "epoch", "ended")
    seconds = [line["seconds"] for line in lines if line["kind"] in of_steps]
    assert seconds == sorted(seconds)
    assert [row.epoch for row in rows] == [2, 3, 4, 5]
    assert rows[0].seconds > first.train_seconds


@pytest.mark.parametrize("left", [0, 1])
def test_a_rate_is_that_of_the_session_that_shows_it(left: int, tmp_path: Path) -> None:
    """Also where nobody knows how long the steps before have taken."""
    run, shown = tmp_path / "run", list[Progress]()

    class Watches(Reporter):
        def progress(self, progress: Progress) -> None:
            shown.append(progress)

    a_run(run, log_every=1)
    (run / "metrics.jsonl").unlink()
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(lines[: len(lines) - left]))
    for path in (run / "checkpoints").glob("step-*36.npz"):
        path.unlink()
    (run / "report.json").unlink()
    result = resume(run, reporter=Watches())
    assert (result.examples_seen, result.step_examples) == (4500, 92 * left)
    assert result.examples_per_second == pytest.approx(
        92 * left / result.step_seconds if left else 0
    )
    assert [progress.examples_per_second for progress in shown] == [
        pytest.approx(92 / progress.seconds) for progress in shown
    ]


def test_steps_that_no_record_has_timed_are_as_fast_as_those_before(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert seconds_of_steps(path, 0) == seconds_of_steps(path, 500) == 0.0
    writer = MetricsWriter(path)
    for examples, seconds in ((100, 1.0), (200, 3.0), (400, 9.0)):
        writer.write({"kind": "progress", "examples_seen": examples, "seconds": seconds})
    writer.close()
    assert [seconds_of_steps(path, examples) for examples in (200, 300, 400)] == [3.0, 4.5, 9.0]


def test_only_a_running_run_on_ray_can_be_scaled(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    with pytest.raises(RunError, match="is not running"):
        scale(tmp_path / "run", 2)
    with pytest.raises(UsageError, match="workers cannot be 0"):
        scale(tmp_path / "run", 0)
    (tmp_path / "run" / "report.json").unlink()
    folder = RunFolder(tmp_path / "run")
    folder.hold()
    with pytest.raises(UsageError, match="trains in one process"):
        scale(tmp_path / "run", 2)
    folder.release()


def killed_at_its_end(run: Path) -> Path:
    """As it is after the last update, before anything is known of its outcome."""
    (run / "report.json").unlink()
    return run


@pytest.mark.parametrize("servers", [1, 2])
def test_a_run_killed_after_its_last_update_ends_when_resumed(servers: int, tmp_path: Path) -> None:
    whole = a_run(tmp_path / "run", servers=servers)
    again = resume(killed_at_its_end(tmp_path / "run"))
    assert (again.status, again.weights_sha256) == ("finished", whole)


@pytest.mark.ray
@pytest.mark.parametrize("settings", [{"servers": 3, "consistency": "ssp"}, {"compress": "fp16"}])
def test_and_so_on_ray(settings: dict[str, Any], tmp_path: Path, shared_ray: None) -> None:
    whole = a_run(tmp_path / "run", **settings)
    again = resume(killed_at_its_end(tmp_path / "run"), workers=2)
    assert (again.status, again.weights_sha256) == ("finished", whole)
