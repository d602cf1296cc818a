from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support import on_sample

from distsgd.errors import UsageError
from distsgd.runs.folder import RunFolder, create_run
from distsgd.runs.origin import change_tags, commit_of, origin_here, tags_of

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    place = tmp_path / "project" / ".git"
    place.mkdir(parents=True)
    (place / "HEAD").write_text("ref: refs/heads/main\n")
    return place


def test_the_commit_of_a_branch_of_a_folder_within(repository: Path) -> None:
    inside = repository.parent / "src" / "deep"
    inside.mkdir(parents=True)
    assert commit_of(inside) is None  # before the first commit
    (repository / "packed-refs").write_text(f"# pack-refs\n{COMMIT} refs/heads/main\n")
    assert commit_of(inside) == COMMIT
    branch = repository / "refs" / "heads" / "main"
    branch.parent.mkdir(parents=True)
    branch.write_text("f" * 40)
    assert commit_of(inside) == "f" * 40


def test_the_commit_of_a_detached_head_and_of_a_worktree(repository: Path, tmp_path: Path) -> None:
    (repository / "HEAD").write_text(COMMIT)
    assert commit_of(repository.parent) == COMMIT
    own = repository / "worktrees" / "other"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/other")
    (own / "commondir").write_text("../..")
    (repository / "packed-refs").write_text(f"{'e' * 40} refs/heads/other\n")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / ".git").write_text(f"gitdir: {own}\n")
    assert commit_of(tree) == "e" * 40


@pytest.mark.parametrize("head", ["", "ref: ../../../etc/passwd", "ref:", "\0", "ref: a\0b", "x"])
def test_no_commit_in_a_strange_repository(head: str, repository: Path) -> None:
    (repository / "HEAD").write_text(head)
    assert commit_of(repository.parent) is None


def test_the_commit_is_that_of_git() -> None:
    here = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is no git checkout")
    assert commit_of(here) == done.stdout.strip()


def test_the_origin_of_a_call_from_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = origin_here()
    assert found.command is None and found.host
    assert origin_here(["distsgd", "train"]).command == ("distsgd", "train")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create_run(tmp_path / "run", on_sample(), {})


def test_tags(run: RunFolder) -> None:
    assert tags_of(run) == []
    assert change_tags(run, ["b", " a ", "b"]) == ["b", "a"]
    assert change_tags(run, ["[red]"], ["b"]) == ["a", "[red]"]
    assert tags_of(RunFolder(run.path)) == ["a", "[red]"]


@pytest.mark.parametrize("tag", ["", " ", "x" * 101, "a\nb", "\x1b[31m"])
def test_what_is_no_tag(tag: str, run: RunFolder) -> None:
    with pytest.raises(UsageError, match="is no tag"):
        change_tags(run, [tag])
    assert tags_of(run) == []
