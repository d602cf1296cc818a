"""A run folder, and its copy made of the lines that are printed about it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from support import on_sample

import distsgd
from distsgd.errors import RunError, UsageError
from distsgd.runs.folder import RunFolder
from distsgd.runs.history import HistoryReader
from distsgd.watch.mirror import Incoming, Outgoing, mirrored_run, printed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("far") / "run"
    distsgd.train(config=on_sample(workers=0, epochs=3), run_dir=folder)
    return folder


def shown(folder: Path) -> dict[str, object]:
    return {**HistoryReader(folder).look().to_json(), "folder": ""}


def test_the_copy_shows_the_same(run: Path, tmp_path: Path) -> None:
    text = "".join(f"{line}\n" for line in printed(str(run)))
    copy = Incoming(tmp_path / "near" / "run")
    for start in range(0, len(text), 7919):  # pieces end anywhere
        copy.take(text[start : start + 7919])
    assert copy.there.is_set() and copy.whole
    assert shown(copy.folder) == shown(run)
    names = {"config.json", "report.json", "metrics.jsonl", "journal.jsonl"}
    for name in names | {f"checkpoints/{path.name}" for path in (run / "checkpoints").iterdir()}:
        assert (copy.folder / name).read_bytes() == (run / name).read_bytes()
        assert (copy.folder / name).stat().st_mode & 0o777 == 0o600


def test_what_is_added_follows(run: Path, tmp_path: Path) -> None:
    far, near = tmp_path / "far", Incoming(tmp_path / "near")
    far.mkdir()
    for name in ("config.json", "journal.jsonl"):
        (far / name).write_bytes((run / name).read_bytes())
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    held = RunFolder(far)
    held.hold()
    out = Outgoing(held)
    sent = 0
    for count in (3, 3, 5, len(lines)):
        with (far / "metrics.jsonl").open("ab") as file:
            file.write(b"".join(lines[sent:count]))
        sent = count
        for line in out.look():
            near.take(f"{line}\n")
        assert (near.folder / "metrics.jsonl").read_bytes() == b"".join(lines[:count])
        assert RunFolder(near.folder).status() == "running" and not out.over
    assert list(out.look()) == []
    (far / "metrics.jsonl").write_bytes(lines[0])  # it has become shorter
    held.release()
    for line in out.look():
        near.take(f"{line}\n")
    assert (near.folder / "metrics.jsonl").read_bytes() == lines[0]
    assert out.over and RunFolder(near.folder).status() == "dead"


def test_nothing_else_is_written(tmp_path: Path) -> None:
    copy = Incoming(tmp_path / "near" / "run")
    data = base64.b64encode(b"x").decode()
    for name in ("../evil", "/tmp/evil", "checkpoints/../../evil", "evil", "workers.json", 7):
        copy.take("mirror " + json.dumps({"file": name, "at": 0, "data": data, "end": True}) + "\n")
    copy.take('mirror [1]\nmirror {"file": "metrics.jsonl"}\nmirror {\nerror: what it says\n')
    assert not copy.whole and copy.said == "error: what it says "
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_cannot_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distsgd.watch.mirror._SECONDS_TO_BEGIN", 0.0)
    with pytest.raises(RunError, match="there is no run nowhere"):
        next(printed("nowhere"))
    with pytest.raises(UsageError, match="--help is no name"), mirrored_run("--help", "auto"):
        pass
