"""A fork goes on from any update of its parent, with other settings or in the parent's order."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.errors import DivergedError, JournalError, RunError, UsageError
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.proof.timeline import Timeline
from distsgd.runs.folder import find_run
from distsgd.runs.lineage import forks_of, lineage
from distsgd.runs.opened_run import open_run
from distsgd.runs.removal import check_removable, check_unneeded
from distsgd.training import resume, train
from distsgd.training.forking import fork_with
from distsgd.training.results import EpochRow, Reporter, TrainResult

BASE: dict[str, Any] = {"workers": 0, "epochs": 3, "batch_size": 100, "slot_size": 25}

POLICIES: dict[str, dict[str, Any]] = {
    "bsp": {"optimizer": "momentum"},
    "ssp": {"consistency": "ssp", "staleness": 2},
    "asp": {"consistency": "asp", "compress": "topk:0.2"},
    "backup": {"consistency": "backup", "backup": 1},
    "local": {"consistency": "local", "local_steps": 3},
}
STEPS = 15  # of an epoch


class Notes(Reporter):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)


def trained(folder: Path, name: str = "run", **settings: Any) -> TrainResult:
    return train("sample", run_dir=folder / name, **{**BASE, **settings})


def forked(
    parent: Path, at: int | str, name: str = "fork", reporter: Reporter | None = None, **given: Any
) -> TrainResult:
    options = {key: given.pop(key) for key in ("order", "whole", "stopping") if key in given}
    into = parent.parent / name
    return fork_with(parent, at, given, reporter or Reporter(), run_dir=into, **options)


@pytest.mark.parametrize("policy", POLICIES)
def test_without_changes_it_ends_as_its_parent(policy: str, tmp_path: Path) -> None:
    parent = trained(tmp_path, **POLICIES[policy])
    chosen = [0, parent.steps, random.Random(policy).randrange(1, parent.steps)]
    for at in chosen:
        fork = forked(tmp_path / "run", at, f"recorded-{at}", order="recorded")
        assert fork.weights_sha256 == parent.weights_sha256, at
        assert fork.steps == parent.steps and fork.status == "finished"
        found, recomputed = audit(fork.run_dir), replay(fork.run_dir)
        assert found.class_examples == audit(parent.run_dir).class_examples
        assert (found.updates, found.parents, found.begins_after) == (parent.steps, 1, 0)
        assert recomputed.weights_sha256 == parent.weights_sha256
        assert recomputed.updates == parent.steps
        own = audit(fork.run_dir, own=True)
        assert (own.begins_after, own.parents) == (at, 0)
    if policy != "asp":  # whose residuals are shared out again where processes start
        fork = forked(tmp_path / "run", chosen[2], "live", order="live")
        assert fork.weights_sha256 == parent.weights_sha256
        assert replay(fork.run_dir).weights_sha256 == parent.weights_sha256


def test_another_learning_rate_is_a_schedule_that_changes_there(tmp_path: Path) -> None:
    step = {"schedule": "step", "step_epochs": 1.0, "epochs": 2, "optimizer": "momentum"}
    expected = trained(tmp_path, "expected", learning_rate=0.01, step_factor=0.1, **step)
    trained(tmp_path, learning_rate=0.01, step_factor=1.0, **step)
    fork = forked(tmp_path / "run", "epoch:1", learning_rate=0.01 * 0.1)
    assert fork.weights_sha256 == expected.weights_sha256
    assert replay(fork.run_dir).weights_sha256 == expected.weights_sha256


def test_settings_that_change_within_an_epoch(tmp_path: Path) -> None:
    trained(tmp_path, consistency="asp")
    notes = Notes()
    fork = forked(
        tmp_path / "run", 20, reporter=notes, optimizer="adam", loss="svm", regularization=0.1,
        consistency="bsp", epochs=2,
    )  # fmt: skip
    assert (fork.steps, fork.loss, fork.epochs) == (30, "svm", 2)
    assert any(text.startswith("mean and squares of adam starts") for text in notes.texts)
    assert audit(fork.run_dir).complete
    assert replay(fork.run_dir).weights_sha256 == fork.weights_sha256
    timeline = Timeline(open_run(fork.run_dir))
    assert (timeline.first, timeline.last) == (0, 30)
    assert [step.job.loss for step in timeline.steps(19, 22)] == ["softmax"] * 2 + ["svm"] * 2


def test_settings_of_the_plan_change_between_epochs(tmp_path: Path) -> None:
    trained(tmp_path, consistency="asp")
    for given in ({"batch_size": 250}, {"batch_size": 30, "slot_size": 10}, {"seed": 5}):
        with pytest.raises(UsageError, match="update 16 is within one") as error:
            forked(tmp_path / "run", 16, **given)
        assert "epoch:1" in error.value.hint and "epoch:2" in error.value.hint
        name = "-".join(given)
        fork = forked(tmp_path / "run", "epoch:1", name, **given)
        found = audit(fork.run_dir)
        assert found.complete and found.examples == 3 * 1500
        assert set(found.class_examples.values()) == {450}
        assert replay(fork.run_dir).weights_sha256 == fork.weights_sha256
        longer = resume(fork.run_dir, epochs=4)
        assert replay(fork.run_dir).weights_sha256 == longer.weights_sha256


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"model": "mlp:5"}, "a fork keeps its model"),
        ({"validation": 0.1}, "a fork keeps its validation"),
        ({"learning_rte": 1}, "there is no setting 'learning_rte'"),
        ({"learning_rate": "fast"}, "learning_rate cannot be fast"),
        ({"epochs": 1}, "epochs=1 is fewer than were begun by update 20"),
        ({"momentum": 0.5}, "momentum does not go with optimizer='sgd'"),
        ({"order": "best"}, "order='best' is no order"),
        ({"order": "recorded", "workers": 2}, "order='recorded' does not go with workers=2"),
    ],
)
def test_what_a_fork_refuses(given: dict[str, Any], text: str, tmp_path: Path) -> None:
    trained(tmp_path, epochs=2)
    with pytest.raises(UsageError, match=text):
        forked(tmp_path / "run", 20, **given)
    assert not (tmp_path / "fork").exists()


def test_where_a_fork_cannot_begin(tmp_path: Path) -> None:
    trained(tmp_path, "run", journal="bounded", epochs=4)
    trained(tmp_path, "other")
    for at, text in ((61, "has no update 61"), ("noon", "names no update")):
        with pytest.raises(UsageError, match=text):
            forked(tmp_path / "run", at)
    with pytest.raises(RunError, match=r"its journal or its checkpoints begin later"):
        forked(tmp_path / "run", 3)
    fork = forked(tmp_path / "run", 50)
    assert audit(fork.run_dir).begins_after == 45
    assert replay(fork.run_dir).weights_sha256 == fork.weights_sha256
    assert forked(tmp_path / "other", "0s", "start").steps == 45
    assert (find_run(tmp_path / "start").read("config.json")["parent"])["update"] == 0


def test_a_diverged_run_is_forked_before_it_diverged(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        trained(tmp_path, learning_rate=1e6, schedule="constant", regularization=0.1)
    last = Timeline(open_run(tmp_path / "run")).last
    assert last > 0
    fork = forked(tmp_path / "run", max(0, last - 3), learning_rate=1e-4)
    assert fork.status == "finished" and audit(fork.run_dir).complete


class StopAfter(Reporter):
    """Asks a training to stop at an epoch."""

    def __init__(self, epoch: int) -> None:
        self.last, self.reached = epoch, False

    def epoch(self, row: EpochRow) -> None:
        self.reached = row.epoch >= self.last

    def __enter__(self) -> Any:
        return lambda: self.reached

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.parametrize("policy", ["ssp", "asp"])
def test_a_stopped_fork_goes_on_in_the_recorded_order(policy: str, tmp_path: Path) -> None:
    parent = trained(tmp_path, **POLICIES[policy])
    stop = StopAfter(2)
    fork = forked(tmp_path / "run", 10, reporter=stop, stopping=stop)
    assert fork.status == "interrupted" and fork.steps < parent.steps
    shutil.copytree(fork.run_dir, tmp_path / "copy")
    assert resume(fork.run_dir).weights_sha256 == parent.weights_sha256
    assert replay(fork.run_dir).weights_sha256 == parent.weights_sha256
    changed = resume(tmp_path / "copy", epochs=4)  # leaves the recorded order
    assert changed.steps == 60
    assert replay(tmp_path / "copy").weights_sha256 == changed.weights_sha256


def test_a_fork_follows_the_resumes_of_its_parent(tmp_path: Path) -> None:
    parent = trained(tmp_path, consistency="ssp", epochs=2)
    parent = resume(parent.run_dir, epochs=3)
    fork = forked(tmp_path / "run", 25)
    assert fork.weights_sha256 == parent.weights_sha256 and fork.epochs == 3
    assert replay(fork.run_dir).weights_sha256 == parent.weights_sha256
    longer = forked(tmp_path / "run", 40, "longer", epochs=4)  # the schedule differs
    assert longer.steps == 60 and longer.weights_sha256 != parent.weights_sha256
    assert replay(longer.run_dir).weights_sha256 == longer.weights_sha256


def test_forks_of_forks_and_their_places(tmp_path: Path) -> None:
    parent = trained(tmp_path)
    forked(tmp_path / "run", 10, "one", regularization=0.1)
    two = forked(tmp_path / "one", 20, "two", regularization=0.2)
    whole = forked(tmp_path / "two", 30, "whole", regularization=0.3, whole=True)
    early = forked(tmp_path / "two", 5, "early")  # before its own history
    assert early.weights_sha256 == parent.weights_sha256
    opened = open_run(two.run_dir)
    assert [part.last for part in lineage(opened)] == [10, 20, None]
    timeline = Timeline(opened)
    weights = {version: timeline.at(version).weights for version in (9, 10, 15, 25)}
    for name, versions in (("run", (9, 10)), ("one", (15,)), ("two", (25,))):
        other = Timeline(open_run(tmp_path / name))
        for version in versions:
            np.testing.assert_array_equal(weights[version], other.at(version).weights)
    assert audit(two.run_dir).parents == replay(two.run_dir).parents == 2
    run = find_run(tmp_path / "run")
    assert {fork.path.name for fork in forks_of(run)} == {"one", "early"}
    with pytest.raises(RunError, match="is the history of"):
        check_unneeded([run])
    check_unneeded([run, *(find_run(tmp_path / name) for name in ("one", "two", "early"))])
    assert check_removable(find_run(whole.run_dir)) > 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").rename(tmp_path / "elsewhere" / "run")
    assert audit(whole.run_dir).parents == replay(whole.run_dir).parents == 3
    for check in (audit, replay):
        with pytest.raises(RunError, match=r"run, which .* was forked from at update 10, is gone"):
            check(two.run_dir)
        assert check(two.run_dir, own=True).begins_after == 20
    assert resume(two.run_dir, epochs=4).steps == 60
    (tmp_path / "elsewhere" / "run").rename(tmp_path / "run")
    other = trained(tmp_path / "elsewhere", "run")
    (tmp_path / "run").rename(tmp_path / "away")
    shutil.copytree(other.run_dir, tmp_path / "run")
    with pytest.raises(RunError, match="is no longer what it was"):
        audit(two.run_dir)


def test_a_changed_history_is_found(tmp_path: Path) -> None:
    trained(tmp_path)
    fork = forked(tmp_path / "run", 30, regularization=0.1)
    path = tmp_path / "fork" / "config.json"
    content = json.loads(path.read_text())
    journal = tmp_path / "run" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:4], lines[4].replace(b'"s": 4', b'"s": 3'), *lines[5:]]))
    with pytest.raises(JournalError, match=r"its digest does not follow .* \(in .*run\)"):
        audit(fork.run_dir)
    journal.write_bytes(b"".join(lines))
    audit(fork.run_dir)
    content.pop("digest")
    content["settings"]["regularization"] = 0.2
    find_run(tmp_path / "fork").write("config.json", content)
    with pytest.raises(JournalError, match="binds other settings"):
        audit(fork.run_dir)


def test_from_python(tmp_path: Path) -> None:
    run = distsgd.load(trained(tmp_path).run_dir)
    fork = run.fork(20, learning_rate=0.001, run_dir=tmp_path / "fork", tags="lower")
    assert fork.result is not None and fork.result.steps == 45
    assert fork.config.learning_rate == 0.001
    with pytest.raises(UsageError, match="chaos cannot be 3"):
        run.fork(20, chaos=3)
    with pytest.raises(RunError, match="exists already"):
        run.fork(20, run_dir=tmp_path / "fork")


def test_a_bounded_fork_goes_on_in_the_recorded_order(tmp_path: Path) -> None:
    parent = trained(tmp_path, consistency="ssp", epochs=5)
    stop = StopAfter(4)
    fork = forked(tmp_path / "run", 10, reporter=stop, stopping=stop, journal="bounded")
    assert fork.status == "interrupted"
    assert audit(fork.run_dir, own=True).begins_after > 10
    notes = Notes()
    assert resume(fork.run_dir, reporter=notes).weights_sha256 == parent.weights_sha256
    assert not any("recorded order" in text for text in notes.texts)
    assert replay(fork.run_dir, own=True).weights_sha256 == parent.weights_sha256


def test_a_fork_whose_parent_is_gone_goes_on_live(tmp_path: Path) -> None:
    trained(tmp_path, consistency="ssp")
    stop = StopAfter(2)
    fork = forked(tmp_path / "run", 10, reporter=stop, stopping=stop)
    shutil.rmtree(tmp_path / "run")
    notes = Notes()
    assert resume(fork.run_dir, reporter=notes).status == "finished"
    assert any("cannot be followed any more" in text and "is gone" in text for text in notes.texts)
    assert audit(fork.run_dir, own=True).complete


@pytest.mark.parametrize("name", ["update", "digest", "order"])
def test_a_damaged_parent_entry(name: str, tmp_path: Path) -> None:
    fork = forked(Path(trained(tmp_path, epochs=1).run_dir), 10)
    folder = find_run(fork.run_dir)
    content = folder.read("config.json")
    content["parent"].pop(name)
    folder.write("config.json", content)
    for check in (audit, resume):
        with pytest.raises(RunError, match=r"config\.json is damaged: its parent"):
            check(fork.run_dir)


def test_a_fork_that_claims_to_be_its_own_parent(tmp_path: Path) -> None:
    fork = forked(Path(trained(tmp_path, epochs=1).run_dir), 4)
    folder = find_run(fork.run_dir)
    content = folder.read("config.json")
    content["parent"].update(path=fork.run_dir, created=content["created"])
    folder.write("config.json", content)
    with pytest.raises(RunError, match="cannot be its own parent"):
        lineage(open_run(fork.run_dir))


def test_a_fork_that_was_stopped_before_it_had_begun(tmp_path: Path) -> None:
    fork = forked(Path(trained(tmp_path, epochs=1).run_dir), 10)
    shutil.rmtree(Path(fork.run_dir) / "checkpoints")
    (Path(fork.run_dir) / "report.json").unlink()
    with pytest.raises(RunError, match=r"was stopped before it had begun\. Fork again"):
        resume(fork.run_dir)
