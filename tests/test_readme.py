"""The README's command lines and its Python run as they stand, in order, in one folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from inspect import signature
from pathlib import Path

from PIL import Image
from support import run_here

from distsgd.cli.simulate_commands import simulate
from distsgd.cli.train_commands import train
from distsgd.config.recipe import LEARNING_RATES, REGULARIZATION
from distsgd.config.settings import TrainConfig
from distsgd.simulation.scenario import fleet_from

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


SHORTER = {
    "distsgd lecture --quick": ("--only", "losses", "--only", "steps"),
    "distsgd study convexity --dataset sample": ("--segments", "5", "--examples", "50"),
}
"""Lines that take long are played for a part; tests/lecture gives the whole of the lecture."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines()]


def test_command_lines_run(cifar10: Path, tmp_path: Path, shared_ray: None) -> None:
    Image.new("RGB", (200, 100), (30, 90, 160)).save(tmp_path / "photo.png")
    (scenario,) = blocks("toml")
    (tmp_path / "fleet.toml").write_text(scenario, encoding="utf-8")
    program = Path(sys.executable).with_name("distsgd")
    assert subprocess.run([program, "--version"], capture_output=True).returncode == 0
    lines = [line for line in commands() if line.startswith("distsgd ")]
    assert len(lines) >= 12
    assert SHORTER.keys() <= set(lines)
    for line in lines:
        name, *words = shlex.split(line)
        assert name == "distsgd" and not {"|", ">", "&&"} & set(words)
        code, _, errors = run_here([*words, *SHORTER.get(line, ())], tmp_path, {})
        assert code == 0, (line, errors)


def test_python_runs(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100), (30, 90, 160)).save(tmp_path / "photo.png")
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_the_two_commands_are_there() -> None:
    top = Path(__file__).parents[1]
    for line in commands()[:2]:
        assert os.access(top / line, os.X_OK)


def test_the_table_of_settings_is_complete_and_true() -> None:
    config = TrainConfig()
    for name in TrainConfig.__dataclass_fields__:
        assert f"`{name}`" in README
    rows = re.findall(r"^\| `(\w+)` \| `?([\w.-]+)`? \|", README, re.MULTILINE)
    for name, default in rows:
        value = getattr(config, name)
        assert default in ("by", str(value).lower()) or type(value)(default) == value
    for loss, value in REGULARIZATION.items():
        assert str(value) in README and str(LEARNING_RATES[loss]["sgd"]) in README


def test_the_settings_that_are_flags_are_named() -> None:
    (sentence,) = re.findall(r"Flags of `distsgd\ntrain` are (.*?)\.", README, re.DOTALL)
    settings = {field.name for field in fields(TrainConfig)}
    assert re.findall(r"`--([a-z-]+)`", sentence) == [
        name.replace("_", "-") for name in signature(train).parameters if name in settings
    ]


def test_the_table_of_a_simulated_fleet_is_complete_and_true() -> None:
    """Every flag of the fleet has an example that can be used; --rejoin with that of --fail."""
    examples = re.findall(r"^\| [^|]*\| `--(\w+) (\S+)` \|", README, re.MULTILINE)
    for name, value in examples:
        if name != "scenario":
            fleet_from({"fail": dict(examples)["fail"], name: value})
    shared = signature(simulate).parameters.values()
    flags = {
        flag.name for flag in shared for option in getattr(flag.annotation, "__metadata__", ())
        if option.rich_help_panel == "The fleet"
    }  # fmt: skip
    assert {name for name, _ in examples} == flags - {"workers"}
