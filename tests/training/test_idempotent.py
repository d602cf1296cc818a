"""A training that begins or goes on by the same call."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support import on_sample

from distsgd.errors import RunError, UsageError
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.runs.folder import RunFolder
from distsgd.training.idempotent import run_to_resume
from distsgd.training.training import resume, train

SMALL: dict[str, Any] = {"workers": 0, "epochs": 3, "batch_size": 128}


def begin_or_go_on(folder: Path, **settings: Any) -> str:
    given = {**SMALL, **settings}
    return train("sample", run_dir=folder, resume_if_exists=True, **given).weights_sha256


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    begin_or_go_on(folder)
    return folder


def test_it_begins_then_goes_on_and_a_finished_run_is_returned(whole: Path, tmp_path: Path) -> None:
    expected = RunFolder(whole).report()["weights_sha256"]
    journal = (whole / "journal.jsonl").read_bytes()
    for seed in range(3):
        run = tmp_path / f"cut-{seed}"
        shutil.copytree(whole, run)
        (run / "report.json").unlink()
        end = Random(seed).randrange(len(journal))
        (run / "journal.jsonl").write_bytes(journal[:end])
        for checkpoint in (run / "checkpoints").glob("step-*.npz"):
            if int(checkpoint.stem.removeprefix("step-")) > journal[:end].count(b"\n"):
                checkpoint.unlink()
        assert begin_or_go_on(run) == expected
    before = sorted((file.name, file.stat().st_mtime_ns) for file in run.iterdir())
    assert begin_or_go_on(run) == expected
    assert sorted((file.name, file.stat().st_mtime_ns) for file in run.iterdir()) == before


def test_what_a_resume_may_change_may_differ(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    longer = begin_or_go_on(run, epochs=4)
    other = tmp_path / "other"
    train("sample", run_dir=other, **SMALL)
    assert longer == resume(other, epochs=4).weights_sha256
    with pytest.raises(UsageError, match="epochs=3 is fewer than the 4 of the run"):
        begin_or_go_on(run)


def test_other_settings_are_refused_in_one_line(whole: Path) -> None:
    with pytest.raises(UsageError) as error:
        begin_or_go_on(whole, seed=1, optimizer="adam")
    text = str(error.value)
    assert "\n" not in text and "optimizer='adam' where it has sgd" in text
    assert "seed=1 where it has 0" in text and "another run_dir" in text
    with pytest.raises(UsageError, match="resume_if_exists needs the folder of the run"):
        train("sample", resume_if_exists=True, **SMALL)


def test_what_a_kill_before_config_json_left_is_cleared(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / ".running").touch()
    (run / ".config.json.123.tmp").write_text("{")
    holder = RunFolder(run)
    holder.hold()
    with pytest.raises(RunError, match="is running"):
        run_to_resume(run, on_sample())
    holder.release()
    assert begin_or_go_on(run) == RunFolder(whole).report()["weights_sha256"]


def test_a_folder_of_something_else_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match="is not empty"):
        begin_or_go_on(tmp_path)
    assert (tmp_path / "checkpoints").is_dir() and (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("journal", [None, b"", b'{"r": 0, "e": 3, "n"'])
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    whole: Path, tmp_path: Path, journal: bytes | None
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").mkdir()
    shutil.copy(whole / "config.json", run)
    if journal is not None:
        (run / "journal.jsonl").write_bytes(journal)
    assert resume(run).weights_sha256 == RunFolder(whole).report()["weights_sha256"]
    assert replay(run).weights_sha256 == RunFolder(run).report()["weights_sha256"]
    audit(run)


def test_without_checkpoints_a_run_with_updates_is_refused(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    (run / "report.json").unlink()
    with pytest.raises(RunError, match="no checkpoint that can be read"):
        resume(run)
    assert (run / "journal.jsonl").stat().st_size
