"""Numbers that no machine can place are refused at the start, before anything is made."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import on_sample

from distsgd.bench.benchmark import Options
from distsgd.cluster.local_node import start_head, start_member
from distsgd.config.settings import TrainConfig
from distsgd.config.sources import config_from
from distsgd.data.dataset import open_dataset
from distsgd.errors import DivergedError, RuntimeFailure, UsageError
from distsgd.lecture.experiments import check_convexity, gradcheck, landscape, step_sizes
from distsgd.on_ray import capacity as room
from distsgd.on_ray.task_pool import task_pool
from distsgd.runs.folder import RunFolder
from distsgd.simulation.scenario import fleet_from
from distsgd.simulation.simulate import simulate
from distsgd.training import limits
from distsgd.training.limits import Needs, check_fleet, check_sizes, sizes_of
from distsgd.training.training import resume, scale, train

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


SMALL_SLOTS = {"batch_size": 1500, "slot_size": 1}
LARGE_BATCH = {"batch_size": 1500, "slot_size": 900, "dtype": "float64"}


@pytest.mark.parametrize(
    ("free", "own", "settings", "words"),
    [
        (90, None, {"model": "mlp:900"}, r"^model='mlp:900' on .* 90 MiB are free\. model='mlp:"),
        (None, 90, {"model": "mlp:900"}, r" 90 MiB are free to a process \(ulimit\)\. model='mlp:"),
        (128, 900, SMALL_SLOTS, r"\. slot_size=64 fits, or anything larger"),
        (20, None, LARGE_BATCH, r"^batch_size=1500 takes .*\. batch_size=\d+ fits, or .* smaller"),
        (1, None, {}, r"^model='linear' .*Free some memory, or train where there is more"),
        (900, None, {"workers": 7}, r"^workers=7 takes .* each worker, .*\. workers=[1-6] fits"),
    ],
)
def test_the_setting_that_takes_the_memory_is_named_with_what_fits(
    free: int | None,
    own: int | None,
    settings: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "free_memory", lambda: free and free * 2**20)
    monkeypatch.setattr(limits, "process_memory", lambda: own and own * 2**20)
    config = config_from({"dataset": "sample", "workers": 0, **settings})
    dataset = open_dataset("sample")
    with pytest.raises(UsageError, match=words):
        check_sizes(config, dataset)
    assert config.workers == 0 or check_sizes(config, dataset, elsewhere=True) is None


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            lambda: next(iter(gradcheck(examples=1500))),
            r"^examples=1500 takes .* examples=\d+ f",
        ),
        (
            lambda: next(iter(gradcheck(examples=1, model="mlp:99"))),
            r"^model='mlp:99' .* model='mlp:\d+' f",
        ),
        (
            lambda: check_convexity("sample", examples=1500),
            r"^examples=1500 takes .* 10 MiB are free",
        ),
        (lambda: landscape("sample", examples=999, along=["gradient"]), r"^examples=999 takes"),
        (lambda: step_sizes("sample", steps=[1e-6] * 1001), r"^steps must be 4 to 1000 numbers"),
    ],
)
def test_what_other_commands_take_is_compared_with_the_memory_too(
    command: Callable[[], object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "free_memory", lambda: 10 * 2**20)
    with pytest.raises(UsageError, match=words):
        command()


@pytest.mark.parametrize("version", [1, 2])
def test_the_memory_of_containers_counts(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the own group and of those around it, without what is kept of files."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    monkeypatch.setattr(room, "_PROC", proc)
    monkeypatch.setattr(room, "_GROUPS", groups)
    assert room.free_memory() is None
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  5000 kB\n")
    assert room.free_memory() == 5000 * 1024
    names = ("memory.max", "memory.current", "inactive_file")
    top = groups
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        top = groups / "memory"
    line = "0::/a/b\n" if version == 2 else "3:cpu:/x\n5:memory,hugetlb:/a/b\n"
    (proc / "self" / "cgroup").write_text(line)
    (top / "a" / "b").mkdir(parents=True)
    for folder, limit, used in ((top / "a" / "b", "max", 10), (top / "a", "3000", 2900)):
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
    (top / "a" / "memory.stat").write_text(f"anon 5\n{names[2]} 400\n")
    assert room.free_memory() == 3000 - 2900 + 400


@pytest.mark.parametrize("version", [1, 2])
def test_a_ray_is_not_begun_without_threads_for_it(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    monkeypatch.setattr(room, "_PROC", proc)
    monkeypatch.setattr(room, "_GROUPS", groups)
    assert room.free_threads() is None or os.geteuid() != 0
    top = groups if version == 2 else groups / "pids"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("0::/a\n" if version == 2 else "8:pids:/a\n")
    (top / "a").mkdir(parents=True)
    (top / "a" / "pids.max").write_text("60\n")
    (top / "a" / "pids.current").write_text("5\n")
    assert room.free_threads() == 55
    with pytest.raises(RuntimeFailure, match="only 55 more threads"):
        train("sample", workers=1, epochs=1)


_PEAKS = """
import json, sys, tempfile
from pathlib import Path
from distsgd.training.training import train

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def run(**settings):
    before = memory("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        train("sample", workers=0, epochs=1, run_dir=Path(folder) / "run", **settings)
    return memory("VmHWM") - before

run()
print(json.dumps([run(**settings) for settings in json.loads(sys.argv[1])]))
"""


def test_memory_is_estimated_as_it_is_measured() -> None:
    """Of trainings in one process, of which each takes more than the one before."""
    each = [
        {"model": "mlp:250"},
        {"model": "mlp:250", "batch_size": 1500, "slot_size": 30},
        {"model": "mlp:500", "optimizer": "adam"},
    ]
    done = subprocess.run(
        [sys.executable, "-c", _PEAKS, json.dumps(each)], capture_output=True, text=True, check=True
    )
    dataset = open_dataset("sample")
    for settings, peak in zip(each, json.loads(done.stdout), strict=True):
        config = config_from({"dataset": "sample", "workers": 0, **settings})
        estimate = sizes_of(config, dataset, "uint8").needs().total
        assert 0.7 < estimate / peak < 1.4, (settings, estimate, peak)


def test_the_memory_of_a_team_is_counted_where_there_is_one() -> None:
    dataset = open_dataset("sample")

    def needs(**settings: Any) -> Needs:
        config = config_from({"dataset": "sample", "workers": 2, "model": "mlp:500", **settings})
        return sizes_of(config, dataset, "uint8").needs()

    w = 500 * 3073 * 4
    team, apart = needs(), needs(channel="shm")
    assert team.worker == apart.worker and team.total - apart.total == team.server - apart.server
    assert team.server - apart.server > 2 * w
    momentum = {"optimizer": "momentum"}
    assert needs(**momentum).server - needs(**momentum, channel="shm").server > 4 * w
    for ordinary in ({"consistency": "ssp"}, {"compress": "onebit"}, {"verify": 1.0}):
        assert needs(**ordinary) == needs(**ordinary, channel="shm")


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
    with pytest.raises(UsageError, match="workers=9 is more"), task_pool(9):
        pass
    with pytest.raises(UsageError, match="workers cannot be -1"), task_pool(-1):
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
    with pytest.raises(UsageError, match=r"workers cannot be .* from 1 to 10,000"):
        fleet_from({"workers": workers})


@pytest.mark.parametrize("number", [-1, 10**9, 10**30])
def test_other_numbers_have_bounds(number: int) -> None:
    with pytest.raises(UsageError, match=r"^cpus cannot be"):
        start_head(cpus=number)
    with pytest.raises(UsageError, match=r"^cpus cannot be"):
        start_member("10.0.0.1:6379", cpus=number)
    with pytest.raises(UsageError, match="rounds cannot be"):
        Options(rounds=number)
    if number < 0:
        with pytest.raises(UsageError, match="seed cannot be"):
            next(iter(gradcheck(seed=number)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pixel_scale": 50.0}, "arithmetic='exact' does not go with a pixel_scale of 50: it must"),
        ({"init_scale": 10.0}, "does not go with first weights whose 3,072 a row add up to about"),
        ({"init_scale": 30.0, "model": "mlp:2"}, "first weights of the second layer of up to 258"),
        ({"dtype": "float64"}, "dtype does not go with arithmetic='exact'"),
        ({"cache": "float32"}, "cache='float32' does not go with dtype='float64'"),
    ],
    ids=str,
)
def test_what_exact_arithmetic_cannot_hold_is_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        train("sample", workers=0, arithmetic="exact", run_dir=tmp_path / "run", **settings)
    assert words in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 1e4}, "weights of class 0 add up to 1.66"),
        ({"learning_rate": 3.0, "model": "mlp:4"}, "a hidden value is 1,803.56, and scores are"),
        ({"learning_rate": 1e300, "regularization": 1e10}, "the loss at step 0 is inf"),
        ({"learning_rate": 1e4, "workers": 2}, "weights of class 0 add up to 1.66"),
    ],
    ids=str,
)
def test_weights_that_leave_their_bounds_are_reported_with_the_bound(
    settings: dict[str, Any], words: str
) -> None:
    """The third is no matter of bounds, W itself is infinite; with workers, it is simulated."""
    settings = {"arithmetic": "exact", "workers": 0, "schedule": "constant", **settings}
    config = on_sample(epochs=3, **settings)
    with pytest.raises(DivergedError, match="diverged") as raised:
        if config.workers:
            simulate(config)
        else:
            train(config=config)
    assert words in raised.value.problem
    assert pickle.loads(pickle.dumps(raised.value)).problem == raised.value.problem
