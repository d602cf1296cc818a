"""Numbers that no machine can place are refused at the start, before anything is made."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from distsgd.api import limits
from distsgd.api.gradcheck import gradcheck
from distsgd.api.limits import check_fleet
from distsgd.api.scenario import fleet_from
from distsgd.api.training import resume, scale, train
from distsgd.bench.benchmark import Options
from distsgd.errors import UsageError
from distsgd.run.config import TrainConfig
from distsgd.run.config_sources import config_from
from distsgd.run.folder import RunFolder
from distsgd.runtime import room
from distsgd.runtime.local_node import start_head, start_member
from distsgd.runtime.task_pool import task_pool

NUMBERS = [one for one in dataclasses.fields(TrainConfig) if str(one.type)[:3] in ("int", "flo")]
WITH: dict[str, dict[str, Any]] = {
    "staleness": {"consistency": "ssp"}, "backup": {"consistency": "backup"},
    "local_steps": {"consistency": "local"}, "cache_size": {"dataset": "s3://bucket/set"},
}  # fmt: skip
UNBOUNDED = {"seed", "batch_size", "backup"}
"""Any seed will do, and the others are compared with the dataset."""


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: str(field.name))
@pytest.mark.parametrize("value", ["-1", "1" + "0" * 30, "nan", "inf", "-inf", "1e308"])
def test_every_number_has_bounds(field: dataclasses.Field[Any], value: str) -> None:
    if value.isdecimal() and (field.name in UNBOUNDED or "float" in str(field.type)):
        return
    with pytest.raises(UsageError, match=rf"^{field.name} cannot be .*Give a"):
        config_from({**WITH.get(field.name, {}), field.name: value})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"workers": 0, "servers": 1000}, "servers=1000 is more than W, of 30,.* from 1 to 12"),
        ({"workers": 5000}, "workers=5000 is more than there is room for: .* processes at most"),
        ({"workers": 2, "servers": 999}, "servers=999 is more than there is room for"),
        ({"workers": 0, "batch_size": 10**30}, "larger than the training set of 1500"),
        ({"workers": 0, "slot_size": 10**9}, "slot_size cannot be 1000000000"),
        ({"workers": 0, "dataset": "sample", "model": "mlp:10001"}, "model cannot be mlp:10001"),
    ],
)
def test_what_cannot_be_placed_is_refused_before_anything_is_made(
    settings: dict[str, Any], words: str, private_home: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        train(**{"dataset": "sample", **settings})
    assert not private_home.exists()


def test_a_model_that_memory_does_not_hold_is_refused(
    private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "free_memory", lambda: 2**30)
    with pytest.raises(UsageError, match=r"mlp:10000' on 3,072 features takes .* GiB are free"):
        train("sample", workers=0, model="mlp:10000", dtype="float64")
    assert not private_home.exists()


def test_room_follows_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    for free, most in ((None, 128), (2**40, 128), (50 * 100 * 2**20, 50), (0, 8)):
        monkeypatch.setattr(room, "free_memory", lambda free=free: free)
        assert room.most_processes() == most
    check_fleet(TrainConfig(workers=7))
    with pytest.raises(UsageError, match=r"servers=9 is more .* Give a number from 1 to 7\."):
        check_fleet(TrainConfig(workers=1, servers=9))
    with pytest.raises(UsageError, match=r"workers=8 is more .* Give a number from 1 to 7\."):
        check_fleet(TrainConfig(workers=8))
    check_fleet(TrainConfig(workers=1000), elsewhere=True)
    with pytest.raises(UsageError, match="--workers 9 is more"), task_pool(9):
        pass
    with pytest.raises(UsageError, match="--workers cannot be -1"), task_pool(-1):
        pass


def test_memory_is_known() -> None:
    found = room.free_memory()
    assert found is None or 0 <= found < 2**50


def test_a_run_is_neither_resumed_nor_scaled_beyond_the_room(tmp_path: Path) -> None:
    train("sample", workers=0, epochs=1, run_dir=tmp_path / "run")
    for given, word in (
        ({"workers": 5000, "epochs": 2}, "workers=5000"),
        ({"servers": 1000, "epochs": 2}, "servers=1000"),
    ):
        with pytest.raises(UsageError, match=f"^{word} is more"):
            resume(tmp_path / "run", **given)
    assert RunFolder(tmp_path / "run").status() == "finished"
    with pytest.raises(UsageError, match="workers cannot be 0"):
        scale(tmp_path / "run", 0)


@pytest.mark.parametrize("workers", ["0", "-1", "10001", "1e30", "inf", "nan", 10**400])
def test_a_simulated_fleet_has_bounds(workers: object) -> None:
    with pytest.raises(UsageError, match=r"--workers cannot be .* from 1 to 10,000"):
        fleet_from({"workers": workers})


@pytest.mark.parametrize("number", [-1, 10**9, 10**30])
def test_other_numbers_have_bounds(number: int) -> None:
    with pytest.raises(UsageError, match="--cpus cannot be"):
        start_head(cpus=number)
    with pytest.raises(UsageError, match="--cpus cannot be"):
        start_member("10.0.0.1:6379", cpus=number)
    with pytest.raises(UsageError, match="--rounds cannot be"):
        Options(rounds=number)
    if number < 0:
        with pytest.raises(UsageError, match="--seed cannot be"):
            next(iter(gradcheck(seed=number)))
