"""The state of a run after any update has the bits that the training had there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.arrays import Floats
from distsgd.core.server import ParameterServer
from distsgd.proof.timeline import Timeline
from distsgd.runs.opened_run import open_run
from distsgd.training import train

POLICIES: dict[str, dict[str, Any]] = {
    "bsp": {"optimizer": "momentum"},
    "ssp": {"consistency": "ssp", "staleness": 2},
    "asp": {"consistency": "asp"},
    "backup": {"consistency": "backup", "backup": 1},
    "local": {"consistency": "local", "local_steps": 3},
}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, Floats]:
    """Version -> flat W, of the trainings of this process."""
    found: dict[int, Floats] = {}
    push = ParameterServer.push

    def watched(server: ParameterServer, *arguments: Any, **options: Any) -> Any:
        decisions = push(server, *arguments, **options)
        found[server.version] = server.weights.copy()
        return decisions

    monkeypatch.setattr(ParameterServer, "push", watched)
    return found


def trained(folder: Path, **settings: Any) -> Timeline:
    given = {"workers": 0, "epochs": 3, "batch_size": 100, "slot_size": 25, **settings}
    train("sample", run_dir=folder / "run", **given)
    return Timeline(open_run(folder / "run"))


@pytest.mark.parametrize("policy", POLICIES)
def test_steps_are_those_of_the_training(
    policy: str, seen: dict[int, Floats], tmp_path: Path
) -> None:
    timeline = trained(tmp_path, **POLICIES[policy])
    first, last = timeline.last // 2, timeline.last // 2 + 4
    steps = 0
    for version, step in enumerate(timeline.steps(first, last), first):
        assert step.record.version == version
        assert step.before.tobytes() == seen[version - 1].tobytes()
        assert step.after.tobytes() == seen[version].tobytes()
        assert step.loss > 0 and 0 <= step.correct <= step.examples
        steps += 1
    assert steps == 5


def test_a_step_has_its_mean_gradient(tmp_path: Path) -> None:
    timeline = trained(tmp_path, optimizer="sgd", regularization=0.1)
    for step in timeline.steps(7, 9):
        job = step.job
        change = step.learning_rate * (step.gradient + job.decay() * step.before)
        np.testing.assert_allclose(step.before - step.after, change, rtol=0, atol=1e-6)
        assert step.examples == 100 and step.learning_rate == job.schedule.at(step.record.step)
