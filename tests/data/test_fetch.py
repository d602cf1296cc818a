"""Fetching again, with other shards, over damage, and two at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_cifar10
from data_support import LOCK, flip, snapshot, times
from small_cifar10 import BATCH_ROWS, TRAIN_ROWS
from support import PATIENCE, Run

from distsgd.data.cifar10.archive import BATCHES, CLASSES, SHAPE, Records
from distsgd.data.cifar10.fetch import fetch_cifar10
from distsgd.data.cifar10.repair import verify_dataset
from distsgd.data.manifest import read_manifest
from distsgd.data.shards import write_dataset
from distsgd.errors import CorruptDataError


@pytest.fixture
def fetched(cache: Path, reference: Path) -> Path:
    """A cache that holds the whole dataset."""
    return Path(shutil.copytree(reference, cache / "datasets" / "cifar10"))


def test_a_second_fetch_does_nothing(fetched: Path) -> None:
    before = times(fetched)
    said: list[str] = []
    assert fetch_cifar10("/nowhere/at/all", say=said.append) == fetched
    assert times(fetched) == before
    assert said == []


def test_forced_it_is_built_anew(
    fetched: Path, binary_folder: Path, reference_bytes: dict[str, str]
) -> None:
    before = times(fetched)
    fetch_cifar10(str(binary_folder), force=True)
    assert not set(before.values()) & set(times(fetched).values())
    assert snapshot(fetched) == reference_bytes


@pytest.mark.parametrize("shards", [1, 3])
def test_the_number_of_shards_can_be_chosen(
    fetched: Path, binary_folder: Path, shards: int
) -> None:
    fetch_cifar10(str(binary_folder), shards)
    manifest = verify_dataset(fetched).manifest
    assert len(manifest.train) == shards
    assert len(list(fetched.iterdir())) == shards + 2
    before = times(fetched)
    for again in (shards, None):
        fetch_cifar10("/nowhere/at/all", again)
    assert times(fetched) == before


def test_shards_differ_by_one_row_at_most(cache: Path, binary_folder: Path) -> None:
    manifest = read_manifest(fetch_cifar10(str(binary_folder), 7))
    rows = [shard.rows for shard in manifest.train]
    assert sum(rows) == TRAIN_ROWS
    assert max(rows) - min(rows) == 1


@pytest.mark.parametrize(
    "damage", ["a shard", "the manifest", "a missing shard", "an empty folder"]
)
def test_a_damaged_dataset_is_replaced(
    fetched: Path, binary_folder: Path, reference_bytes: dict[str, str], damage: str
) -> None:
    spoil(fetched, damage)
    said: list[str] = []
    fetch_cifar10(str(binary_folder), say=said.append)
    assert "the dataset in the cache is damaged and will be replaced" in said[0]
    assert snapshot(fetched) == reference_bytes
    assert sorted(path.name for path in fetched.parent.iterdir()) == [LOCK, "cifar10"]


def spoil(folder: Path, damage: str) -> None:
    if damage == "a shard":
        flip(folder / "train-00003-of-00008.arrow", 1_000_000)
    elif damage == "the manifest":
        flip(folder / "manifest.json", 500)
    elif damage == "a missing shard":
        (folder / "test-00000-of-00001.arrow").unlink()
    else:
        shutil.rmtree(folder)
        folder.mkdir()


def test_what_an_earlier_fetch_left_is_swept_even_if_all_is_there(fetched: Path) -> None:
    for name in ("datasets/.cifar10~abc", "datasets/.cifar10~old-1", "downloads/npm-abc"):
        left = fetched.parents[1] / name
        left.mkdir(parents=True)
        (left / "large").write_bytes(b"x")
    fetch_cifar10()
    assert sorted(path.name for path in fetched.parent.iterdir()) == [LOCK, "cifar10"]
    assert not (fetched.parents[1] / "downloads").exists()


def test_other_datasets_are_left_alone(cache: Path, tmp_path: Path) -> None:
    other = cache / "datasets" / "mine" / "manifest.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    (tmp_path / "bad.tar.gz").write_bytes(b"bad")
    with pytest.raises(Exception, match="not a complete archive"):
        fetch_cifar10(str(tmp_path / "bad.tar.gz"))
    assert other.read_text() == "{}"


def test_pixels_that_are_not_the_official_ones_are_found_out(
    tmp_path: Path, records: Records
) -> None:
    """Also where every checksum of the dataset's own was made to fit."""
    train = np.concatenate([records[name] for name in BATCHES if name != "test_batch"])
    train[3 * BATCH_ROWS + 1_000, 1234] ^= 1
    test = records["test_batch"]
    write_dataset(
        tmp_path, name="cifar10", shape=SHAPE, classes=CLASSES, shards=1,
        train=(train[:, 1:], train[:, 0]), test=(test[:, 1:], test[:, 0]),
    )  # fmt: skip
    with pytest.raises(CorruptDataError, match="data_batch_4 is not the official one"):
        verify_dataset(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()


def start_fetch(source: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, small_cifar10.__file__, "data", "fetch", "--source", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def test_of_two_at_once_one_works_and_both_succeed(
    cache: Path, binary_folder: Path, reference_bytes: dict[str, str]
) -> None:
    both = [start_fetch(binary_folder) for _ in range(2)]
    try:
        ends = [process.communicate(timeout=PATIENCE) for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert [process.returncode for process in both] == [0, 0], ends
    assert sum("writing 8 training shards" in err for _, err in ends) == 1
    assert all("CIFAR-10 is ready in" in out for out, _ in ends)
    assert snapshot(cache / "datasets" / "cifar10") == reference_bytes
    assert sorted(path.name for path in (cache / "datasets").iterdir()) == [LOCK, "cifar10"]


def test_the_command_line_fetches_shows_and_verifies(
    distsgd_here: Run, cache: Path, binary_folder: Path
) -> None:
    done = distsgd_here("data", "fetch", "--source", binary_folder, "--shards", 2, "--json")
    answer = json.loads(done.stdout)
    assert answer["dataset"] == str(cache / "datasets" / "cifar10")
    assert answer["shards"] == 2

    shown = json.loads(distsgd_here("data", "info", "--json").stdout)
    assert (shown["train"], shown["test"], shown["digest"]) == (
        TRAIN_ROWS, BATCH_ROWS, answer["digest"],
    )  # fmt: skip

    verified = distsgd_here("data", "verify")
    assert verified.returncode == 0
    assert verified.stdout.startswith("3 shards of ")

    flip(cache / "datasets" / "cifar10" / "train-00001-of-00002.arrow", 2_000_000)
    broken = distsgd_here("data", "verify")
    assert broken.returncode == 1
    assert "train-00001-of-00002.arrow is corrupt" in broken.stderr
