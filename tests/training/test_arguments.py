"""Arguments of the Python functions that are of a wrong type: one line, and nothing is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import distsgd
from distsgd.errors import DistsgdError, RunError, UsageError
from distsgd.training.arguments import as_reporter

SHORT = {"dataset": "sample", "workers": 0, "epochs": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(distsgd.train(**SHORT, run_dir=tmp_path_factory.mktemp("run") / "run").run_dir)


def progress(step: object) -> None:
    """A function where a reporter belongs."""


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"reporter": progress}, "reporter cannot be a function"),
        ({"reporter": distsgd.Reporter}, "reporter cannot be a type"),
        ({"reporter": True}, "reporter cannot be True"),
        ({"run_dir": 5}, "run_dir cannot be 5"),
        ({"run_dir": b"run"}, "run_dir cannot be b'run'"),
        ({"run_dir": "a\0b"}, "run_dir cannot be"),
        ({"trace": ["a"]}, "trace cannot be"),
        ({"chaos": ["kill-worker:every=50"], "workers": 2}, "chaos cannot be"),
        ({"address": ("localhost", 6379), "workers": 2}, "address cannot be"),
        ({"workers": [2]}, "workers cannot be"),
        ({"epochs": "three"}, "epochs cannot be three"),
        ({"loss": 3}, "loss cannot be 3"),
    ],
    ids=str,
)
def test_train(given: dict[str, Any], named: str, private_home: Path) -> None:
    refused(UsageError, named, distsgd.train, **{**SHORT, **given})
    assert not list(private_home.rglob("config.json"))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"reporter": progress}, "reporter cannot be a function"),
        ({"chaos": 5, "epochs": 2}, "chaos cannot be 5"),
        ({"address": 5, "epochs": 2, "workers": 2}, "address cannot be 5"),
        ({"epochs": "three"}, "epochs cannot be three"),
        ({"epochs": [3]}, "epochs cannot be"),
        ({"servers": "one"}, "servers cannot be one"),
    ],
    ids=str,
)
def test_resume(given: dict[str, Any], named: str, run: Path) -> None:
    before = (run / "report.json").read_bytes()
    refused(UsageError, named, distsgd.resume, run, **given)
    assert (run / "report.json").read_bytes() == before


@pytest.mark.parametrize("name", [5, None, ["run"], b"latest", "a\0b", "x" * 5000], ids=repr)
def test_a_run_that_cannot_be(name: Any) -> None:
    calls: list[Callable[..., Any]] = [
        distsgd.resume, distsgd.evaluate, lambda name: distsgd.predict(name, "photo.png"),
        lambda name: distsgd.scale(name, 2),
    ]  # fmt: skip
    for call in calls:
        refused(RunError, "run", call, name)


@pytest.mark.parametrize("split", ["x", None, ["test"]], ids=repr)
def test_there_are_two_splits(split: Any, run: Path) -> None:
    refused(UsageError, "split cannot be", distsgd.evaluate, run, split=split)


@pytest.mark.parametrize("number", [0, -1, "3", 1.5, True, None], ids=repr)
def test_counts(number: Any, run: Path) -> None:
    refused(UsageError, "top cannot be", distsgd.predict, run, "photo.png", top=number)
    refused(UsageError, "workers cannot be", distsgd.scale, run, number)


def test_what_has_the_methods_of_a_reporter_is_one() -> None:
    methods = dict(inspect.getmembers(distsgd.Reporter, inspect.isfunction))
    alike = type("Alike", (), methods)()
    assert as_reporter(alike) is alike
    assert type(as_reporter(None)) is distsgd.Reporter


def refused(
    kind: type[DistsgdError], named: str, call: Callable[..., Any], *given: Any, **named_ones: Any
) -> None:
    with pytest.raises(kind) as caught:
        call(*given, **named_ones)
    assert named in str(caught.value) and "\n" not in str(caught.value)
