"""Run folders: what state a run is in."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from distsgd.config.settings import TrainConfig
from distsgd.errors import RunError
from distsgd.runs import folder
from distsgd.runs.folder import RunFolder, create_run, find_run, handle, list_runs


def test_status_follows_the_life_of_a_run(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", TrainConfig(), {})
    assert RunFolder(run.path).status() == "running"
    run.release()
    assert RunFolder(run.path).status() == "dead"
    run.write("report.json", {"status": "finished"})
    assert RunFolder(run.path).status() == "finished"


def test_runs_are_found_by_path_name_and_as_the_latest() -> None:
    first, second = (create_run(None, TrainConfig(seed=n), {}) for n in (1, 2))
    assert find_run(first.path).path == find_run(first.path.name).path == first.path.resolve()
    assert {run.path for run in list_runs()} == {first.path.resolve(), second.path.resolve()}
    assert find_run("latest").settings().seed in (1, 2)


def test_runs_that_begin_at_once_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, now = iter(["aa", "aa", "aa", "bb"]), datetime(2026, 1, 2, tzinfo=UTC)
    clock = SimpleNamespace(now=lambda zone: now)
    monkeypatch.setattr(folder, "datetime", clock)
    monkeypatch.setattr(folder.secrets, "token_hex", lambda count: next(tokens))
    first, second = (create_run(None, TrainConfig(seed=n), {}) for n in (1, 2))
    assert [run.path.name[-2:] for run in (first, second)] == ["aa", "bb"]


def test_runs_are_private_to_the_user() -> None:
    run = create_run(None, TrainConfig(), {})
    assert run.path.stat().st_mode & 0o777 == 0o700
    assert (run.path / "config.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": {"epochs": 0}}', "\0"])
def test_a_damaged_config_is_a_clear_error(content: str) -> None:
    run = create_run(None, TrainConfig(), {})
    (run.path / "config.json").write_text(content)
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        run.settings()


def test_a_file_without_its_checksum_is_damaged() -> None:
    run = create_run(None, TrainConfig(), {})
    path = run.path / "config.json"
    content = json.loads(path.read_text())
    del content["digest"]
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"config\.json is damaged: it does not match its own"):
        run.settings()


def test_what_is_listed_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [
        create_run(path, TrainConfig(), {})
        for path in (None, tmp_path / "here" / "cf", tmp_path / "here" / "one", tmp_path / "cf")
    ]
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    listed = list(list_runs())
    assert {run.path for run in listed} == {run.path.resolve() for run in made}
    for run in listed:
        assert find_run(handle(run)).path == run.path
    assert handle(made[0]) == made[0].path.name
    assert find_run("one").path == made[2].path
    with pytest.raises(RunError, match=r"there are 2 runs cf. Give the path of one: .*here/cf"):
        find_run("cf")
    monkeypatch.chdir(tmp_path / "here")
    assert find_run("cf").path == made[1].path


def test_the_list_shows_where_runs_lie(
    tmp_path: Path, private_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from distsgd.cli.runs_commands import list_

    usual, elsewhere = (create_run(path, TrainConfig(), {}) for path in (None, tmp_path / "cf"))
    list_()
    shown = capsys.readouterr().out
    assert str(private_home / "runs") in shown
    words = shown.split()
    assert usual.path.name in words and str(elsewhere.path) in words


def test_who_else_can_change_a_run(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", TrainConfig(), {})
    assert run.others() == ""
    run.path.chmod(0o770)
    assert run.others() == ""
    run.path.chmod(0o707)
    assert run.others().startswith("every user may write to")
    if os.geteuid() == 0:
        os.chown(run.path, 12345, -1)
        assert "belongs to another user" in run.others()
