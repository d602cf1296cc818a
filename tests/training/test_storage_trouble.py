"""A disk that is full for a while, or a folder that is gone, does not end a training."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import pytest

from distsgd.config.settings import TrainConfig
from distsgd.engine.events import Progress
from distsgd.errors import StorageError
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.training.results import EpochRow, Reporter
from distsgd.training.training import train


class Trouble(Reporter):
    """From the second epoch to the fourth no file may grow; then the checkpoints are removed."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.run = Path()
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        self.run = run_dir

    def epoch(self, row: EpochRow) -> None:
        if row.epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, self._limits[1]))
        if row.epoch == 4:
            self.relieve()
        if row.epoch == 6:
            shutil.copytree(self.run / "checkpoints", self.run / "before")
            shutil.rmtree(self.run / "checkpoints")

    def relieve(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    def notice(self, text: str) -> None:
        self.notices.append(text)


def test_training_goes_on_and_nothing_is_missing(tmp_path: Path) -> None:
    undisturbed = train("sample", workers=0, epochs=8).weights_sha256
    trouble = Trouble()
    try:
        result = train("sample", workers=0, epochs=8, run_dir=tmp_path / "run", reporter=trouble)
    finally:
        trouble.relieve()
    assert result.weights_sha256 == undisturbed
    (notice,) = trouble.notices
    assert "cannot write" in notice and "training continues" in notice
    run = tmp_path / "run"
    kept = sorted(path.name for path in (run / "before").iterdir())
    assert kept == [f"step-{6 * epoch:09d}.npz" for epoch in (0, 1, 2, 5, 6)]
    shutil.copytree(run / "before", run / "checkpoints", dirs_exist_ok=True)
    assert audit(run).complete
    assert replay(run).weights_sha256 == undisturbed


class Deleting(Reporter):
    """Deletes the run folder, or its journal, in the middle of the first epoch."""

    def __init__(self, name: str, back: bool) -> None:
        self._name, self._back = name, back
        self.heard: list[tuple[int, str]] = []
        self._step, self._run = 0, Path()

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        self._run = run_dir

    def progress(self, progress: Progress) -> None:
        self._step = progress.step
        if progress.step == 5:
            (self._run / self._name).rename(self._run.with_name("away"))
        if progress.step == 15 and self._back:
            self._run.with_name("away").rename(self._run / self._name)

    def notice(self, text: str) -> None:
        self.heard.append((self._step, text))


@pytest.mark.parametrize(("name", "what"), [("", "run folder"), ("journal.jsonl", "its journal")])
def test_a_folder_that_is_deleted_is_reported_at_once(name: str, what: str, tmp_path: Path) -> None:
    reporter = Deleting(name, back=False)
    settings = {"workers": 0, "epochs": 4, "log_every": 1, "run_dir": tmp_path / "run"}
    if not name:
        with pytest.raises(StorageError, match=r"run: the run folder has been deleted or moved"):
            train("sample", reporter=reporter, **settings)
    else:
        train("sample", reporter=reporter, **settings)
    ((step, text),) = reporter.heard
    assert step == 5 and f"{what} has been deleted or moved" in text and "continues" in text


def test_a_folder_that_is_put_back_is_whole(tmp_path: Path) -> None:
    reporter = Deleting("", back=True)
    train("sample", workers=0, epochs=4, log_every=1, run_dir=tmp_path / "run", reporter=reporter)
    assert len(reporter.heard) == 1
    assert audit(tmp_path / "run").complete and replay(tmp_path / "run").checkpoints > 0
