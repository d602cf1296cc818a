"""Settings: recipes, files, and what takes precedence."""

from __future__ import annotations

from pathlib import Path

import pytest

from distsgd.api.reporter import Reporter
from distsgd.api.scenario import read_scenario
from distsgd.api.training import train
from distsgd.core.losses import LOSSES
from distsgd.core.optimizers import OPTIMIZERS
from distsgd.data.import_dataset import import_dataset
from distsgd.errors import UsageError
from distsgd.run.config import TrainConfig
from distsgd.run.config_sources import config_elsewhere, config_from
from distsgd.run.folder import RunFolder
from distsgd.run.recipe import (
    LEARNING_RATES,
    REGULARIZATION,
    TWO_LAYER_LEARNING_RATES,
)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_loss_and_an_optimizer_bring_their_recipe(loss: str, optimizer: str) -> None:
    config = TrainConfig(loss=loss, optimizer=optimizer)
    assert config.learning_rate == LEARNING_RATES[loss][optimizer]
    assert config.regularization == REGULARIZATION[loss]
    assert TrainConfig(loss=loss, learning_rate=0.5).learning_rate == 0.5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_layers_have_a_recipe_of_their_own(loss: str, optimizer: str) -> None:
    config = TrainConfig(model="mlp:100", loss=loss, optimizer=optimizer)
    assert config.learning_rate == TWO_LAYER_LEARNING_RATES[loss][optimizer]
    assert config.regularization == REGULARIZATION[loss]
    assert (config.init_scale, TrainConfig().init_scale) == (1.0, 1e-4)
    assert TrainConfig(model="mlp:100", init_scale=0.5, regularization=0).init_scale == 0.5


@pytest.mark.parametrize("model", ["mlp", "mlp:0", "mlp:x", "mlp:10001", "tree"])
def test_models_that_there_are_not_are_refused(model: str) -> None:
    with pytest.raises(UsageError, match=f"--model cannot be {model}"):
        TrainConfig(model=model)


def test_the_learning_rate_scales_with_the_minibatch_if_so_wanted() -> None:
    plain, scaled = (TrainConfig(batch_size=1024, scale_lr=wanted) for wanted in (False, True))
    assert scaled.peak_learning_rate == 4 * plain.peak_learning_rate
    assert (plain.warmup_epochs, scaled.warmup_epochs) == (0, 1)
    assert TrainConfig(scale_lr="true", warmup_epochs=2).warmup_epochs == 2  # type: ignore[arg-type]


def test_flags_go_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("epochs = 4\nbatch_size = 32\n")
    config = config_from({"epochs": 7, "seed": None}, file, ["momentum=0.25"])
    assert (config.epochs, config.batch_size, config.momentum) == (7, 32, 0.25)


@pytest.mark.parametrize(
    "settings",
    [{"epochs": True}, {"epochs": None}, {"workers": "two"}, {"momentum": -0.1}, {"loss": 3},
     {"regularization": float("inf")}, {"init_scale": -1}, {"model": 3}, {"warmup_epochs": -1},
     {"scale_lr": 2}],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(settings: dict[str, object]) -> None:
    name = next(iter(settings)).replace("_", "-")
    with pytest.raises(UsageError, match=name.replace("-", "[-_]")):
        TrainConfig(**settings)  # type: ignore[arg-type]


def test_what_only_the_other_machine_knows_is_left_to_it() -> None:
    for settings in (
        {"workers": "auto", "batch_size": "full", "consistency": "backup", "backup": 5},
        {"dataset": "a name there", "batch_size": "full", "slot_size": 512},
        {"dataset": "/a/path/there"},
        {"dataset": "s3://bucket/set?region=eu-central-1"},
    ):
        config_elsewhere(settings)
    with pytest.raises(UsageError, match="carries a name or a key"):
        config_elsewhere({}, None, ["dataset=s3://KEY:SECRET@bucket/set"])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path, encoding: str) -> None:
    toml, of_run, fleet = (tmp_path / name for name in ("a.toml", "config.json", "fleet.toml"))
    toml.write_text("epochs = 4", encoding=encoding)
    of_run.write_text('{"settings": {"epochs": 4}}', encoding=encoding)
    assert config_from({}, toml).epochs == config_from({}, of_run).epochs == 4
    fleet.write_text('slow = "1:4"', encoding=encoding)
    assert read_scenario(fleet)[0] == {"slow": "1:4"}
    assert RunFolder(tmp_path).read("config.json")["settings"] == {"epochs": 4}


def test_a_minibatch_is_no_larger_than_the_dataset_unless_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path / "cache"))
    lines = [f"{i % 7},{i % 2}" for i in range(120)]
    (tmp_path / "plain.csv").write_text("\n".join(["x,label", *lines]))
    found = import_dataset(tmp_path / "plain.csv", "plain")
    told: list[str] = []
    reporter = Reporter()
    reporter.notice = told.append  # type: ignore[method-assign]
    result = train(dataset=found.name, workers=0, epochs=2, reporter=reporter)
    assert (result.batch_size, result.steps) == (found.train, 2)
    assert "smaller --batch-size" in told[0]
    for size in (256, 7):
        assert config_from({"dataset": "plain", "batch_size": size}).batch_size == size
    assert config_from({"dataset": "sample"}).batch_size == 256
    assert config_from({"dataset": "gone"}).batch_size == 256
