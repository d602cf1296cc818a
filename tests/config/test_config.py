"""Settings: recipes, files, and what takes precedence."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from distsgd.cli.main import app
from distsgd.cli.settings import spelling_of, typed
from distsgd.config.recipes import LEARNING_RATES, REGULARIZATION, TWO_LAYER_LEARNING_RATES
from distsgd.config.settings import RESUMABLE_SETTINGS, SETTINGS, TrainConfig
from distsgd.config.sources import ALIASES, config_elsewhere, config_from, read_config_file
from distsgd.core.model import LOSSES
from distsgd.core.optim import OPTIMIZERS
from distsgd.data.importing.import_dataset import import_dataset
from distsgd.errors import UsageError
from distsgd.runs.folder import RunFolder
from distsgd.simulation.scenario import read_scenario
from distsgd.spelling import written
from distsgd.training.results import Reporter
from distsgd.training.training import resume, train

TRAIN = spelling_of(typer.main.get_command(app).commands["train"])  # type: ignore[attr-defined]


def from_line(
    flags: dict[str, Any], file: Path | None = None, assignments: list[str] | None = None
) -> TrainConfig:
    """The settings of a command line of `train`."""
    with written(lambda: TRAIN):
        return config_from(*typed(flags, assignments, file))


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
    with pytest.raises(UsageError, match=f"model cannot be {model}"):
        TrainConfig(model=model)


def test_the_learning_rate_scales_with_the_minibatch_if_so_wanted() -> None:
    plain, scaled = (TrainConfig(batch_size=1024, scale_lr=wanted) for wanted in (False, True))
    assert scaled.peak_learning_rate == 4 * plain.peak_learning_rate
    assert (plain.warmup_epochs, scaled.warmup_epochs) == (0, 1)
    assert TrainConfig(scale_lr="true", warmup_epochs=2).warmup_epochs == 2  # type: ignore[arg-type]


def test_flags_go_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("epochs = 4\nbatch_size = 32\n")
    config = from_line({"epochs": 7, "seed": None}, file, ["dtype=float64"])
    assert (config.epochs, config.batch_size, config.dtype) == (7, 32, "float64")


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
        config_elsewhere({"dataset": "s3://KEY:SECRET@bucket/set"})


def refusal(
    settings: dict[str, Any], file: Path | None = None, assignments: list[str] | None = None
) -> str:
    with pytest.raises(UsageError) as caught:
        from_line(settings, file, assignments)
    return str(caught.value)


def test_an_error_names_a_setting_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    for name, value in (("channel", "foo"), ("cache_size", -1), ("shuffle", "foo")):
        word = name.replace("_", "-")
        assert refusal({name: value}).startswith(f"--{word} cannot be {value}.")
        assert refusal({}, None, [f"{name}={value}"]).startswith(f"--set {name} cannot be {value}.")
        file.write_text(f"{name} = {value!r}\n")
        assert refusal({}, file).startswith(f"{name} in {file} cannot be {value}.")
        with pytest.raises(UsageError, match=f"^{name} cannot be {value}"):
            config_from({name: value})


def test_a_hint_is_written_as_the_setting_was(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('sampling = "random"\n')
    found = refusal({"shuffle": "shard"}, file)
    assert found == (
        f'--shuffle shard does not go with sampling = "random" in {file}. '
        f'Give sampling = "shuffle" in {file}.'
    )
    found = refusal({}, None, ["momentum=0.5"])
    assert found.startswith("--set momentum does not go with --optimizer sgd. It belongs to")
    config = from_line({"optimizer": "momentum"}, None, ["momentum=0.5"])
    assert config.given("momentum") == "--set momentum=0.5"
    assert dataclasses.replace(config, seed=1).given("momentum") == "momentum=0.5"


@pytest.mark.parametrize("alias", ["lr", "bs", "wd", "l2", "weight_decay", "num_workers", "batch",
                                   "epoch", "learn_rate", "batchsize", "Epochs"])  # fmt: skip
def test_following_a_hint_works(alias: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    value = "0.5" if alias in ("lr", "wd", "l2", "weight_decay", "learn_rate") else "3"
    file.write_text(f"{alias} = {value}\n")
    found = refusal({}, None, [f"{alias}={value}"]), refusal({}, file), python(alias, value)
    shown, lined, called = (text.rpartition("Did you mean ")[2].rstrip("?") for text in found)
    config = from_line({}, None, [shown.removeprefix("--set ")])
    file.write_text(lined.removesuffix(f" in {file}"))
    assert from_line({}, file) == config
    name, _, word = called.partition("=")
    assert config_from({name: word}) == config != TrainConfig()


def python(name: str, value: str) -> str:
    with pytest.raises(UsageError) as caught:
        config_from({name: float(value) if "." in value else int(value)})
    return str(caught.value)


def test_a_setting_that_could_not_have_the_value_is_not_proposed() -> None:
    assert "Did you mean" not in refusal({}, None, ["scale=many"])
    assert "It is called learning_rate here" in refusal({}, None, ["lr=fast"])


def test_aliases_are_no_settings_and_lead_to_some() -> None:
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    assert not names & set(ALIASES) and set(ALIASES.values()) <= names


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path, encoding: str) -> None:
    toml, of_run, fleet = (tmp_path / name for name in ("a.toml", "config.json", "fleet.toml"))
    toml.write_text("epochs = 4", encoding=encoding)
    of_run.write_text('{"settings": {"epochs": 4}}', encoding=encoding)
    assert read_config_file(toml) == read_config_file(of_run) == {"epochs": 4}
    fleet.write_text('slow = "1:4"', encoding=encoding)
    assert read_scenario(fleet)[0] == {"slow": "1:4"}
    of_run.unlink()
    run = RunFolder(tmp_path)
    run.write("config.json", {"settings": {"epochs": 4}})
    of_run.write_text(of_run.read_text(encoding="utf-8"), encoding=encoding)
    assert run.read("config.json")["settings"] == {"epochs": 4}


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
    whole = {"dataset": found.name, "workers": 0, "epochs": 2, "batch_size": "full"}
    result = train(**whole, reporter=reporter)
    assert (result.batch_size, result.steps) == (found.train, 2)
    assert "smaller batch_size" in told[0]
    for size in (256, 7):
        assert config_from({"dataset": "plain", "batch_size": size}).batch_size == size
    assert config_from({"dataset": "plain"}).batch_size == 16
    assert config_from({"dataset": "sample"}).batch_size == 256
    assert config_from({"dataset": "gone"}).batch_size == 256


def test_train_has_every_setting_as_an_argument() -> None:
    """Each parameter of a policy, too: a new one is one line in the signature of `train`."""
    extra = {"config", "run_dir", "reporter", "trace", "chaos", "address"}
    extra |= {"callbacks", "tags", "verbose", "resume_if_exists"}
    extra |= {"y", "test", "test_share", "sample_weight"}
    parameters = inspect.signature(train).parameters
    assert set(parameters) == {*SETTINGS, *extra}
    for name, one in SETTINGS.items():
        words = {one.kind, "None"} | ({"str"} if one.special else set())
        words = words if name != "dataset" else {"Any"}  # a name, a path, or arrays
        words |= {"Mapping[Any, float]"} if name == "class_weight" else set()
        words |= {"Sequence[int]"} if name == "without" else set()
        assert set(str(parameters[name].annotation).split(" | ")) == words, name
        assert parameters[name].default is None
        assert f"\n        {name}: " in str(train.__doc__)
    assert set(inspect.signature(resume).parameters) == {
        "run", "reporter", "chaos", "address", "callbacks", "verbose", *RESUMABLE_SETTINGS,
    }  # fmt: skip


def test_settings_in_one_object_are_all_of_them(tmp_path: Path) -> None:
    config = TrainConfig(dataset="sample", workers=0, epochs=1, seed=3)
    result = train(config=config, run_dir=tmp_path / "run")
    assert result.weights_sha256 == train("sample", workers=0, epochs=1, seed=3).weights_sha256
    with pytest.raises(UsageError, match=r"^config does not go with epochs=2\."):
        train(config=config, epochs=2)
    with pytest.raises(UsageError, match=r"^config cannot be a dict"):
        train(config={"epochs": 1})  # type: ignore[arg-type]


def test_an_unknown_argument_names_the_setting_that_is_meant() -> None:
    with pytest.raises(UsageError, match=r"Did you mean learning_rate=0\.1\?"):
        train("sample", lr=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [("momentum", 0.5, "optimizer='sgd'"), ("step_factor", 0.5, "schedule='cosine'"),
     ("shuffle_window", 2, "shuffle='global'"), ("backup", 2, "consistency='bsp'")],
)  # fmt: skip
def test_a_setting_that_would_have_no_effect_is_refused(
    name: str, value: float, other: str
) -> None:
    with pytest.raises(UsageError, match=f"^{name} does not go with {other}"):
        config_from({name: value})


NEW_POLICY = """
from dataclasses import dataclass

from distsgd.core.server.consistency import POLICIES
from distsgd.core.server.consistency.base import Policy, parameter


@dataclass(frozen=True)
class Ahead(Policy):
    depth: int = parameter("Minibatches that are open at once, but for one.", default=1, least=1)
    name = "ahead"

    @property
    def max_staleness(self) -> int:
        return self.depth


POLICIES[Ahead.name] = Ahead  # the line of the registry

from distsgd.__main__ import main

main()
"""


def test_a_policy_with_a_parameter_is_one_file(tmp_path: Path) -> None:
    """Its flag, --set, the check, the run's settings, and the audit follow from it."""

    def line(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", NEW_POLICY, *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    some = ("train", "--dataset", "sample", "--workers", "0", "--epochs", "1", "--run-dir", "run")
    done = line(*some, "--consistency", "ahead", "--depth", "2", "--json")
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (settings["consistency"], settings["depth"]) == ("ahead", 2)
    assert line("audit", "run").returncode == 0
    refused = line(*some, "--consistency", "ahead", "--set", "depth=0")
    assert "--set depth cannot be 0. Give a whole number, 1 or more." in refused.stderr
