"""What reads a run folder while its training writes to it never finds a fault that is not there."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Run, command_line

from distsgd.config.settings import TrainConfig
from distsgd.errors import JournalError, RunError
from distsgd.lecture.experiments.landscape_directions import path_of
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.runs import journal_check
from distsgd.runs.checkpoint import checkpoint_path, checkpoint_versions
from distsgd.runs.folder import RunFolder, create_run
from distsgd.runs.journal import JOURNAL, Journal
from distsgd.runs.opened_run import OpenedRun, open_run
from distsgd.training.evaluation import evaluate
from distsgd.training.training import resume, train

BOUNDED = ("--set", "journal=bounded", "--set", "keep_checkpoints=2")


@pytest.fixture(params=[(), BOUNDED], ids=["whole", "bounded"])
def live(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A run that is training in another process, with a checkpoint every few milliseconds."""
    run = tmp_path / "run"
    command = command_line("train", "--dataset", "sample", "--workers", 0, "--epochs", 100000)
    training = subprocess.Popen(
        [*command, "--run-dir", str(run), *request.param],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not checkpoint_versions(run / "checkpoints") or not (run / JOURNAL).exists():
            assert training.poll() is None
        yield run
    finally:
        training.kill()
        training.wait()


def test_a_live_run_holds_whenever_it_is_looked_at(live: Path) -> None:
    looks: tuple[Callable[[Path], Any], ...] = (
        audit, replay, evaluate, lambda run: path_of(str(run)), lambda run: RunFolder(run).status(),
    )  # fmt: skip
    for _ in range(3):
        for look in looks:
            look(live)
    found = audit(live)
    assert found.running and not found.complete and replay(live).running
    assert evaluate(live).running and RunFolder(live).status() == "running"
    with pytest.raises(RunError, match="is running"):
        resume(live)


def a_run(folder: Path, **settings: Any) -> OpenedRun:
    train("sample", workers=0, run_dir=folder, batch_size=128, **{"epochs": 3, **settings})
    return open_run(folder)


def test_a_beginning_that_is_dropped_meanwhile_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "run", journal="bounded", epochs=4)
    older = a_run(tmp_path / "older", journal="bounded")
    assert older.journal().begin != run.journal().begin
    checkpoint_path(run.folder.checkpoints, older.journal().begin.lines).unlink()
    read, stale = OpenedRun.journal, [older.journal()]

    def journal(self: OpenedRun) -> Journal:
        return stale.pop() if stale else read(self)

    monkeypatch.setattr(OpenedRun, "journal", journal)
    assert audit(tmp_path / "run").complete and not stale


def test_a_fault_of_a_live_run_is_believed_when_it_is_found_twice(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    found: list[int] = []

    def check(view: journal_check.RunView) -> str:
        found.append(len(found))
        raise JournalError(7 if len(found) != 1 else 5, "it is not a record")

    with pytest.raises(JournalError, match="record 5"):
        journal_check.proven(run, check)
    assert len(found) == 1, "one that has ended is read once"
    run.folder.hold()
    found.clear()
    with pytest.raises(JournalError, match="record 7"):
        journal_check.proven(run, check)
    assert len(found) == 3
    run.folder.release()


def test_a_run_that_was_resumed_and_stopped_meanwhile_is_read_again(tmp_path: Path) -> None:
    """A checkpoint of it is newer than the journal that was read, though nobody trains now."""
    run = a_run(tmp_path / "run")
    found: list[int] = []

    def check(view: journal_check.RunView) -> str:
        found.append(len(found))
        if len(found) == 1:
            resume(tmp_path / "run", epochs=4)
            raise JournalError(5, "it is missing: a checkpoint was written after line 6")
        return "it holds"

    assert journal_check.proven(run, check) == "it holds"
    assert len(found) == 2


def test_damage_of_a_live_run_is_found(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    lines = (tmp_path / "run" / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / JOURNAL).write_bytes(b"".join(lines[:5] + lines[6:]))
    run.folder.hold()
    for check in (audit, replay):
        with pytest.raises(JournalError, match="record 6"):
            check(tmp_path / "run")
    run.folder.release()


def test_looking_at_a_run_keeps_nobody_from_holding_it(tmp_path: Path) -> None:
    run, ended = create_run(tmp_path / "run", TrainConfig(), {}), threading.Event()
    run.release()

    def look() -> None:
        while not ended.is_set():
            RunFolder(tmp_path / "run").status()

    watchers = [threading.Thread(target=look) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(200):
            run.hold()
            assert RunFolder(tmp_path / "run").status() == "running"
            run.release()
    finally:
        ended.set()
        for watcher in watchers:
            watcher.join()


def test_a_run_is_held_before_it_can_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, seen = RunFolder.write, []

    def looked_at(self: RunFolder, name: str, content: dict[str, Any]) -> None:
        write(self, name, content)
        seen.append(RunFolder(self.path).status())

    monkeypatch.setattr(RunFolder, "write", looked_at)
    create_run(tmp_path / "run", TrainConfig(), {}).release()
    assert seen == ["running"]


@pytest.mark.parametrize("end", ["finished", "interrupted"])
def test_a_run_that_ends_between_two_looks_has_not_died(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(tmp_path / "run", TrainConfig(), {})
    run.release()
    monkeypatch.setattr(RunFolder, "report", ends_meanwhile(RunFolder.report, end))
    assert RunFolder(tmp_path / "run").status() == end


def ends_meanwhile(
    report: Callable[[RunFolder], dict[str, Any]], end: str
) -> Callable[[RunFolder], dict[str, Any]]:
    """A report that is written just after it was looked for in vain."""

    def reported(self: RunFolder) -> dict[str, Any]:
        found = report(self)
        self.write("report.json", {"status": end})
        return found

    return reported


def test_the_head_that_was_kept_tells_a_forgery(distsgd_here: Run, tmp_path: Path) -> None:
    """The chain has no key: with care somebody can forge all that tells of it, but not its head."""
    from distsgd.runs.checkpoint import checkpoint_versions, remove_checkpoints
    from distsgd.runs.journal import chained

    run = a_run(tmp_path / "run")
    kept = audit(tmp_path / "run").head
    assert (
        json.loads(distsgd_here("runs", "show", tmp_path / "run", "--json").stdout)["report"][
            "journal_head"
        ]
        == kept
    )
    assert audit(tmp_path / "run", kept).head == kept
    resume(tmp_path / "run", epochs=4)
    assert audit(tmp_path / "run", kept).head != kept, "an earlier head is in it"

    path, digest, forged = tmp_path / "run" / JOURNAL, run.first, []
    for line in map(json.loads, path.read_text().splitlines()):
        del line["d"]
        more = [{"w": 2}, line] if line.get("v") == 5 else [line]
        if len(more) == 2:
            line["c"][0][0] = 1  # another worker
        for content in more:
            digest = chained(digest, content)
            forged.append(json.dumps({**content, "d": digest}))
    path.write_text("\n".join(forged) + "\n")
    with pytest.raises(JournalError, match=r"a different digest|as the head of its journal"):
        audit(tmp_path / "run")
    (tmp_path / "run/report.json").unlink()
    folder = tmp_path / "run/checkpoints"
    remove_checkpoints(folder, checkpoint_versions(folder)[1:])
    assert audit(tmp_path / "run").complete, "it holds in itself"
    with pytest.raises(JournalError, match=f"no record has the digest {kept}"):
        audit(tmp_path / "run", kept)
    done = distsgd_here("audit", tmp_path / "run", "--expect", kept)
    assert done.returncode == 1 and kept in done.stderr
    done = distsgd_here("audit", tmp_path / "run", "--expect", kept[:7])
    assert done.returncode == 2 and "32 hexadecimal digits" in done.stderr
