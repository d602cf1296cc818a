"""Settings: recipes, files, and what takes precedence."""

from __future__ import annotations

from pathlib import Path

import pytest

from distsgd.errors import UsageError
from distsgd.run.config import RECIPES, TrainConfig, config_from


@pytest.mark.parametrize("loss", RECIPES)
def test_a_loss_brings_its_recipe(loss: str) -> None:
    config = TrainConfig(loss=loss)
    for name, value in RECIPES[loss].items():
        assert getattr(config, name) == value
    assert TrainConfig(loss=loss, learning_rate=0.5).learning_rate == 0.5


def test_flags_go_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("epochs = 4\nbatch_size = 32\n")
    config = config_from({"epochs": 7, "seed": None}, file, ["momentum=0.25"])
    assert (config.epochs, config.batch_size, config.momentum) == (7, 32, 0.25)


@pytest.mark.parametrize(
    "settings",
    [{"epochs": True}, {"epochs": None}, {"workers": "two"}, {"momentum": -0.1}, {"loss": 3},
     {"regularization": float("inf")}, {"warmup_epochs": -1}],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(settings: dict[str, object]) -> None:
    name = next(iter(settings)).replace("_", "-")
    with pytest.raises(UsageError, match=name.replace("-", "[-_]")):
        TrainConfig(**settings)  # type: ignore[arg-type]
