"""What a session asks of the features that hook into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distsgd.config.settings import TrainConfig
from distsgd.data.dataset import open_dataset
from distsgd.engine.events import Ended, Event, Updated
from distsgd.engine.job import Job
from distsgd.errors import UsageError
from distsgd.runs.opened_run import new_run
from distsgd.training.features import features_of
from distsgd.training.hooks import Context, Hook
from distsgd.training.interrupts import Stop
from distsgd.training.recovery import first_start
from distsgd.training.results import Reporter, Stages
from distsgd.training.session import Session, Task


class Recorder(Hook):
    """Writes down its calls; an update may be one too many."""

    def __init__(self, most: int = 1000) -> None:
        self.calls: list[str] = []
        self.most = most

    def prepare(self, job: Job, context: Context) -> Job:
        self.calls.append(f"open after {context.version}")
        return job

    def event(self, event: Event) -> None:
        if isinstance(event, Updated):
            if event.update.version > self.most:
                raise UsageError("one update too many")
            self.calls.append("update")

    def ended(self, ended: Ended) -> None:
        self.calls.append("ended")

    def close(self) -> None:
        self.calls.append("close")

    def result(self, ended: Ended) -> dict[str, Any]:
        self.calls.append("result")
        return {"verified": {"updates": ended.snapshot.version}}


def session(tmp_path: Path, hook: Hook) -> Session:
    config = TrainConfig(dataset="sample", workers=0, epochs=1)
    run = new_run(tmp_path / "run", config, open_dataset("sample"))
    return Session(Task(config=config, run=run, hooks=[hook]), first_start(run), Reporter(), Stop())


def test_the_order_of_calls(tmp_path: Path) -> None:
    hook = Recorder()
    result = session(tmp_path, hook).run(Stages(0.0, Reporter()))
    assert hook.calls == ["open after 0", *["update"] * 6, "close", "ended", "result"]
    assert result.verified == {"updates": 6}


def test_an_error_ends_the_session_and_closes_the_hook(tmp_path: Path) -> None:
    hook = Recorder(most=2)
    with pytest.raises(UsageError, match="one update too many"):
        session(tmp_path, hook).run(Stages(0.0, Reporter()))
    assert hook.calls == ["open after 0", "update", "update", "close"]


def test_a_training_has_the_features_that_are_asked_for(tmp_path: Path) -> None:
    plain, checked = TrainConfig(workers=0), TrainConfig(workers=0, verify=0.5)
    assert features_of(plain) == []
    assert len(features_of(checked, tmp_path / "trace.json", "dup-push:p=0.1")) == 3
    with pytest.raises(UsageError, match="existing folder"):
        features_of(plain, tmp_path / "nowhere" / "trace.json")
