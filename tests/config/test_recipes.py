"""Defaults that follow from the data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import Run

import distsgd
from distsgd.config.data_facts import largest_eigenvalue
from distsgd.config.recipes import COLUMNS, IMAGES, DataFacts, recipe_for_data
from distsgd.config.settings import TrainConfig
from distsgd.config.sources import config_from
from distsgd.data.importing.import_dataset import import_dataset

FACTS = DataFacts(1347, 64, 10, COLUMNS, whole=False, energy=61.0, curvature=7.4)


def recipe(model: str = "linear", data: DataFacts = FACTS, **given: object) -> dict[str, object]:
    loss, optimizer = str(given.pop("loss", "softmax")), str(given.pop("optimizer", "sgd"))
    return recipe_for_data(model, loss, optimizer, data, given)


def test_cifar_has_the_defaults_of_the_settings() -> None:
    assert recipe(data=FACTS._replace(lecture=True)) == {}
    for model in ("linear", "mlp:100"):
        assert config_from({"dataset": "sample", "model": model}) == TrainConfig(
            dataset="sample", model=model
        )


def test_steps_count_and_not_epochs() -> None:
    assert recipe()["batch_size"] == 32 and recipe()["epochs"] == 35
    assert recipe("mlp:50")["epochs"] == 94
    many = FACTS._replace(rows=200_000)
    assert recipe(data=many)["batch_size"] == 256 and recipe(data=many)["epochs"] == 10
    assert recipe(data=FACTS._replace(rows=20))["epochs"] == 300
    assert recipe(batch_size=1347)["epochs"] == 300 and "batch_size" not in recipe(batch_size=1347)


def test_rates_follow_the_scale_of_the_features() -> None:
    assert recipe()["learning_rate"] == pytest.approx(10 / 7.4, rel=0.05)
    wide = FACTS._replace(energy=61.0 * 100, curvature=740.0)
    assert recipe(data=wide)["learning_rate"] == pytest.approx(0.1 / 7.4, rel=0.05)
    for optimizer in ("momentum", "nesterov", "adagrad", "adam"):
        for loss in ("softmax", "svm"):
            for model in ("linear", "mlp:9"):
                given = {"optimizer": optimizer, "loss": loss}
                assert 0 < recipe(model, **given)["learning_rate"] < 1  # type: ignore[operator]
    pixels = FACTS._replace(kind=IMAGES, whole=True, energy=64 * 60.0**2, curvature=40_000.0)
    assert recipe(data=pixels)["pixel_scale"] == 64.0
    constant = FACTS._replace(energy=0.0, curvature=0.0, classes=1)
    assert np.isfinite(recipe(data=constant)["learning_rate"])  # type: ignore[arg-type]


def test_the_largest_eigenvalue() -> None:
    rows = np.random.default_rng(3).normal(size=(300, 8)) * np.arange(1, 9)
    expected = np.linalg.eigvalsh(rows.T @ rows / 300)[-1]
    assert largest_eigenvalue(rows) == pytest.approx(expected, rel=0.02)
    assert largest_eigenvalue(np.zeros((4, 3))) == 0.0


def test_a_table_is_learned_with_defaults_that_its_run_records(
    distsgd_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(4)
    labels = random.integers(0, 3, 200)
    rows = random.normal(size=(200, 4)) + 3 * np.eye(3, 4)[labels]
    lines = [f"{','.join(f'{x:.3f}' for x in row)},k{label}" for row, label in
             zip(rows * [1, 100, 0.01, 1], labels, strict=True)]  # fmt: skip
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,c,d,label", *lines]) + "\n")
    made = import_dataset(tmp_path / "rows.csv", "rows")
    found = distsgd.train(made.dataset, workers=0, run_dir=tmp_path / "run")
    assert found.test_accuracy > 0.9 and found.steps >= 1500
    assert set(found.history.chosen) == {"dataset", "workers"}
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded["settings"]["epochs"] == found.epochs == recorded["dataset"]["recipe"]["epochs"]
    again = distsgd_here("train", "--config", tmp_path / "run" / "config.json", "--json")
    assert json.loads(again.stdout)["weights_sha256"] == found.weights_sha256
    assert distsgd.resume(tmp_path / "run", epochs=found.epochs + 1).steps > found.steps
