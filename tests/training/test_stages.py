"""The stages of a start are told as they come, and their times add up to that of the start."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import distsgd
from distsgd.training import results
from distsgd.training.results import Stages


class Told(distsgd.Reporter):
    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def started(self, *_: Any) -> None:
        self.stages.append("started")


def test_times_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([12.0, 15.0, 19.0, 50.0])
    monkeypatch.setattr(results, "perf_counter", lambda: next(moments))
    reporter = Told()
    stages = Stages(10.0, reporter)
    stages.enter("dataset")
    stages.enter("ray")
    stages.end()
    stages.end()  # of a later generation of workers: the start is over
    assert stages.seconds == {"load": 2.0, "dataset": 3.0, "ray": 4.0}
    assert reporter.stages == ["dataset", "ray"]


def test_a_reporter_need_not_know_of_them() -> None:
    older: Any = SimpleNamespace()
    Stages(0.0, older).enter("dataset")


def test_a_training_in_one_process_opens_the_dataset_and_is_ready(tmp_path: Path) -> None:
    reporter = Told()
    result = distsgd.train(
        dataset="sample", workers=0, epochs=1, run_dir=tmp_path / "run", reporter=reporter
    )
    assert reporter.stages == ["dataset", "started"]
    assert list(result.startup_stages) == ["load", "dataset"]
    assert sum(result.startup_stages.values()) == result.startup_seconds < result.wall_seconds
