"""Compressed runs go on from residuals beside their checkpoints, with the bits of a whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from distsgd.engine import inline
from distsgd.engine.events import Event, Progress, Updated
from distsgd.engine.job import Job, Snapshot
from distsgd.errors import RunError, ServerLost
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.runs.checkpoint import (
    checkpoint_path,
    checkpoint_versions,
    read_checkpoint,
    write_checkpoint,
)
from distsgd.runs.opened_run import open_run
from distsgd.training.recovery import Stopped, find_tail
from distsgd.training.results import Reporter
from distsgd.training.training import resume, train

POLICIES: dict[str, dict[str, Any]] = {
    "bsp": {"optimizer": "momentum"},
    "ssp": {"consistency": "ssp", "staleness": 2},
    "asp": {"consistency": "asp", "servers": 2},
    "backup": {"consistency": "backup", "backup": 1},
    "local": {"consistency": "local", "local_steps": 3},
}


class Listening(Reporter):
    """Ends the process's training after an update, and keeps what it is told."""

    def __init__(self, last: int = -1) -> None:
        self.last, self.heard = last, list[str]()

    def progress(self, progress: Progress) -> None:
        if progress.step == self.last:
            raise OSError("killed")

    def notice(self, text: str) -> None:
        self.heard.append(text)


def settings_of(codec: str, policy: str) -> dict[str, Any]:
    return {
        "workers": 0, "epochs": 3, "batch_size": 128, "log_every": 1, "compress": codec,
        **POLICIES[policy],
    }  # fmt: skip


@cache
def sha_of(codec: str, policy: str) -> str:
    return train("sample", **settings_of(codec, policy)).weights_sha256


def killed(run: Path, codec: str, policy: str, last: int, **settings: Any) -> Path:
    """A run whose process ended after an update."""
    with pytest.raises(OSError, match="killed"):
        train(
            "sample", run_dir=run, reporter=Listening(last), **settings_of(codec, policy),
            **settings,
        )  # fmt: skip
    return run


@pytest.mark.parametrize(
    ("codec", "policy"),
    [("topk:0.01", "bsp"), ("onebit", "bsp"), ("fp16", "bsp"), ("topk:0.01", "ssp"),
     ("onebit", "asp"), ("fp16", "backup"), ("topk:0.01", "local")],
)  # fmt: skip
def test_a_resume_goes_on_from_residuals(codec: str, policy: str, tmp_path: Path) -> None:
    """Twice, at odd places, and within the session that was resumed."""
    last = {"local": 10}.get(policy, 29)
    journal = "keep" if codec == "onebit" else "bounded"
    run = killed(tmp_path / "run", codec, policy, last, journal=journal)
    tail = find_tail(open_run(run))
    assert 0 < tail.model.version <= last and tail.residuals
    with pytest.raises(OSError, match="killed"):
        resume(run, reporter=Listening(last + 2))
    assert resume(run).weights_sha256 == sha_of(codec, policy)
    assert audit(run).complete
    assert replay(run).weights_sha256 == sha_of(codec, policy)


def test_and_from_a_checkpoint_within_an_epoch(tmp_path: Path) -> None:
    run = killed(tmp_path / "run", "onebit", "bsp", 9, checkpoint_seconds=1e-9)
    assert find_tail(open_run(run)).model.version == 9
    assert resume(run).weights_sha256 == sha_of("onebit", "bsp")


def test_residuals_are_kept_for_the_newest_checkpoints_alone(tmp_path: Path) -> None:
    train("sample", run_dir=tmp_path / "run", **{**settings_of("onebit", "bsp"), "epochs": 6})
    folder = tmp_path / "run" / "checkpoints"
    kept = sorted(path.name[:19] for path in folder.glob("residuals-*"))
    assert kept == ["residuals-000000060", "residuals-000000072"]
    assert len(checkpoint_versions(folder)) == 7


def damaged(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("spoil", [Path.unlink, damaged])
def test_without_its_residuals_a_checkpoint_is_passed_over(
    spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    """The run is computed from its beginning."""
    run = killed(tmp_path / "run", "onebit", "bsp", 29)
    for path in (run / "checkpoints").glob("residuals-*"):
        spoil(path)
    reporter = Listening()
    assert resume(run, reporter=reporter).weights_sha256 == sha_of("onebit", "bsp")
    (told,) = reporter.heard
    assert "residuals-000000024" in told and "after update 0 are recomputed" in told


def test_without_the_newest_residuals_the_older_checkpoint_is_used(tmp_path: Path) -> None:
    run = killed(tmp_path / "run", "onebit", "bsp", 29)
    older, newest = sorted((run / "checkpoints").glob("residuals-*"))
    assert (older.name[:19], newest.name[:19]) == ("residuals-000000012", "residuals-000000024")
    damaged(newest)
    assert find_tail(open_run(run)).model.version == 12
    reporter = Listening()
    assert resume(run, reporter=reporter).weights_sha256 == sha_of("onebit", "bsp")
    (told,) = reporter.heard
    assert newest.name in told and "after update 12 are" in told


def test_checkpoints_of_an_earlier_version_have_no_residuals(tmp_path: Path) -> None:
    run = killed(tmp_path / "run", "onebit", "bsp", 29)
    for version in checkpoint_versions(run / "checkpoints"):
        model = read_checkpoint(checkpoint_path(run / "checkpoints", version))
        write_checkpoint(run / "checkpoints", replace(model, residuals=None))
    reporter = Listening()
    assert resume(run, reporter=reporter).weights_sha256 == sha_of("onebit", "bsp")
    assert "update 24 has no residuals; all updates after update 0" in reporter.heard[0]


def test_with_a_bounded_journal_they_are_needed(tmp_path: Path) -> None:
    run = killed(tmp_path / "run", "onebit", "bsp", 29, journal="bounded", keep_checkpoints=2)
    for path in (run / "checkpoints").glob("residuals-*"):
        damaged(path)
    with pytest.raises(RunError, match=r"cannot be resumed: [^\n]+$"):
        resume(run)
    with pytest.raises(RunError, match=r"residuals-\d+-\w+\.bin is damaged: [^\n]+$"):
        replay(run)


class Dies:
    """In place of the runtime: the server dies after some updates, again and again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
        self._train, self._every = inline.train_inline, every
        monkeypatch.setattr(inline, "train_inline", self)
        self.starts = list[int]()

    def __call__(self, job: Job, start: Snapshot, stop: Callable[[], bool]) -> Iterator[Event]:
        self.starts.append(start.version)
        updates = 0
        for event in self._train(job, start, stop):
            yield event
            updates += isinstance(event, Updated)
            if updates == self._every:
                raise ServerLost("a server has died")


@pytest.mark.parametrize("policy", ["bsp", "ssp", "local"])
def test_a_server_that_dies_is_recovered_from_residuals(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = sha_of("topk:0.01", policy)
    dies = Dies(monkeypatch, every=7)
    run = tmp_path / "run"
    found = train("sample", run_dir=run, **settings_of("topk:0.01", policy))
    assert found.weights_sha256 == wanted and len(dies.starts) > 1
    assert replay(run).weights_sha256 == wanted


def test_a_stop_ends_a_recovery_at_once(tmp_path: Path) -> None:
    run = killed(tmp_path / "run", "onebit", "bsp", 29)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in run.rglob("*"))
    asked = list[int]()
    with pytest.raises(Stopped) as stopped:
        find_tail(open_run(run)).start(open_run(run), lambda: bool(asked.append(1)) or True)
    assert len(asked) == 1 and stopped.value.start.version == 24
    assert sorted((path.name, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


def test_a_session_that_is_stopped_in_its_recovery_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Ctrl-C just after the server has died."""
    from distsgd.config.sources import config_from
    from distsgd.training.interrupts import Stop
    from distsgd.training.preparation import train_with

    class Dead(Stop):
        def __call__(self) -> bool:
            return died

    died = False

    class SeesIt(Dies):
        def __call__(self, *given: Any) -> Iterator[Event]:
            nonlocal died
            try:
                yield from super().__call__(*given)
            except ServerLost:
                died = True
                raise

    wanted = sha_of("onebit", "bsp")
    with monkeypatch.context() as patch:
        SeesIt(patch, every=29)
        config, reporter = (
            config_from({"dataset": "sample", **settings_of("onebit", "bsp")}),
            Listening(),
        )
        result = train_with(config, tmp_path / "run", reporter, stopping=nullcontext(Dead()))
    assert (result.status, result.steps, result.examples_seen) == ("interrupted", 24, 3000)
    assert "recomputed" in reporter.heard[-1]
    assert resume(tmp_path / "run").weights_sha256 == wanted
