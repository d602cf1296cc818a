"""`run.at(update)` has the bits of W that the training had there, under every policy."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from support import on_sample

import distsgd
from distsgd.core.arrays import Floats
from distsgd.core.server import ParameterServer
from distsgd.errors import RunError, UsageError

TRAININGS: dict[str, dict[str, Any]] = {
    "bsp": {"optimizer": "momentum"},
    "ssp": {"consistency": "ssp", "staleness": 2, "model": "mlp:8"},
    "asp": {"consistency": "asp", "compress": "topk:0.05"},
    "backup": {"consistency": "backup", "backup": 1, "arithmetic": "exact"},
    "local": {"consistency": "local", "local_steps": 3, "dtype": "float64"},
}


@pytest.mark.parametrize("policy", TRAININGS)
def test_it_has_the_bits_of_the_training(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, Floats] = {}
    push = ParameterServer.push

    def watched(server: ParameterServer, *arguments: Any, **options: Any) -> Any:
        decisions = push(server, *arguments, **options)
        seen[server.version] = server.weights.copy()
        return decisions

    monkeypatch.setattr(ParameterServer, "push", watched)
    given = {"workers": 0, "epochs": 3, "batch_size": 100, "slot_size": 25, **TRAININGS[policy]}
    result = distsgd.train("sample", run_dir=tmp_path / "run", **given)
    monkeypatch.undo()
    run = distsgd.load(result)
    assert run.updates == result.steps == max(seen)
    assert run.at(-1).weights_sha256 == result.weights_sha256
    without = [version for version in seen if version not in run.checkpoints]
    for update in Random(policy).sample(without, 2):
        moment = run.at(update)
        assert moment.update == update and 0 < moment.epoch < 3
        expected = moment._model.architecture.unpad(seen[update])
        assert moment.weights.tobytes() == expected.tobytes(), f"update {update}"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> distsgd.TrainResult:
    config = on_sample(workers=0, epochs=2, log_every=2, validation=0.02)
    return distsgd.train(config=config, run_dir=tmp_path_factory.mktemp("moments") / "run")


def test_what_it_holds(result: distsgd.TrainResult) -> None:
    run = distsgd.load(result)
    end, moment = run.at("epoch:1"), run.at(7)
    assert run.updates == 12 and (end.update, end.epoch) == (6, 1.0)
    assert run.at("last-5").weights.tobytes() == moment.weights.tobytes()
    assert moment.settings == run.config and 1 < moment.epoch < 2
    measured = moment.evaluate(split="validation")
    assert (measured.step, measured.weights_sha256) == (7, moment.weights_sha256)
    shown = moment.templates()
    assert shown is not None and shown.shape == (10, 32, 32, 3)


def test_one_that_the_run_lacks(result: distsgd.TrainResult, tmp_path: Path) -> None:
    run = distsgd.load(result)
    for wrong in (13, -14, "best", "epoch:3", 1.5, None):
        with pytest.raises(UsageError, match=r"no update|no end of epoch"):
            run.at(wrong)  # type: ignore[arg-type]
    bounded = distsgd.train(
        config=on_sample(workers=0, epochs=4, journal="bounded"), run_dir=tmp_path / "bounded"
    )
    with pytest.raises(RunError, match=r"cannot be recomputed up to update 7.*from 1[0-9] on"):
        distsgd.load(bounded).at(7)


def test_a_checkpoint_may_be_any_update(result: distsgd.TrainResult, tmp_path: Path) -> None:
    run, rows = distsgd.load(result), np.zeros((1, 3072), np.uint8)
    moment = run.at(7)
    assert 7 not in run.checkpoints
    assert run.predictor(7).weights_sha256 == moment.weights_sha256
    assert (run.templates("epoch:1") == run.templates(6)).all()  # type: ignore[union-attr]
    assert distsgd.evaluate(run, at=7) == moment.evaluate()
    (found,) = distsgd.predict(run, rows, at=7, top=1)
    assert found.label == moment.predictor().labels(rows)[0]
    with np.load(run.export("npz", tmp_path / "w.npz", 7).path) as arrays:
        assert arrays["W"].tobytes() == np.ascontiguousarray(moment.weights[:, :-1]).tobytes()
    with pytest.raises(UsageError, match="best does not go with at"):
        distsgd.evaluate(run, best=True, at=7)


def test_before_a_fork_it_is_the_parent(result: distsgd.TrainResult, tmp_path: Path) -> None:
    run = distsgd.load(result)
    fork = run.fork(9, regularization=0.5, run_dir=tmp_path / "fork")
    before, after = fork.at(7), fork.at(10)
    assert before.weights.tobytes() == run.at(7).weights.tobytes()
    assert (before.settings.regularization, after.settings.regularization) == (
        run.config.regularization, 0.5,
    )  # fmt: skip
    assert distsgd.evaluate(fork, at=7).loss == distsgd.evaluate(run, at=7).loss
    assert fork.updates == 12
