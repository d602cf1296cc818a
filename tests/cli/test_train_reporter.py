"""What a terminal shows while Ray starts, and from the first update on."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from distsgd.cli.train_reporter import _LiveReporter
from distsgd.config.settings import TrainConfig
from distsgd.engine.events import Progress


@pytest.mark.parametrize("workers", [0, 2])
def test_no_zeros_while_ray_starts(workers: int) -> None:
    shown = io.StringIO()
    reporter = _LiveReporter(Console(file=shown, force_terminal=True, width=100))
    reporter.stage("dataset")
    assert "opening the dataset" in shown.getvalue()
    reporter.started(TrainConfig(dataset="sample", workers=workers), Path("run"), 60)
    if workers:
        reporter.stage("ray")
        assert "starting the workers" not in shown.getvalue()
        reporter.stage("workers")
    starting = shown.getvalue()
    assert ("starting Ray" in starting) is ("starting the workers" in starting) is (workers > 0)
    assert ("step 0/60" in starting) is (workers == 0)
    reporter.progress(Progress(7, 0, 1.5, 0.5, 0.01, 1792, 1.0))
    reporter.ended()
    assert "step 7/60" in shown.getvalue().removeprefix(starting)


def test_it_ends_also_before_the_first_update() -> None:
    shown = io.StringIO()
    reporter = _LiveReporter(Console(file=shown, force_terminal=True, width=100))
    reporter.stage("dataset")
    reporter.started(TrainConfig(dataset="sample", workers=2), Path("run"), 60)
    reporter.ended()
    length = len(shown.getvalue())
    reporter.notice("more")
    assert "starting" not in shown.getvalue()[length:]
