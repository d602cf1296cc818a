"""Shards are hashed when their rows are first used, once, and believed only while unchanged."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_support import flip, write_tiny

from distsgd.data import verified
from distsgd.data.dataset import Dataset
from distsgd.data.verified import FileChecksum, hash_file, identity_of, known_checksum
from distsgd.errors import CorruptDataError

USES: dict[str, Callable[[Dataset], object]] = {
    "labels": lambda dataset: dataset.train.labels,
    "gather": lambda dataset: dataset.train.gather(np.arange(3), np.empty((3, 12), dtype=np.uint8)),
    "batches": lambda dataset: list(dataset.train.batches()),
    "in memory": lambda dataset: dataset.train.in_memory(),
    "verify": lambda dataset: dataset.verify(),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset that nobody has hashed yet, old enough to be remembered."""
    write_tiny(tmp_path / "tiny")
    monkeypatch.setattr(verified, "_known", {})
    monkeypatch.setattr(verified, "_SETTLED_NS", -(10**18))
    return tmp_path / "tiny"


def shard(folder: Path, number: int = 0) -> Path:
    return folder / f"train-{number:05d}-of-00002.arrow"


def spoil(path: Path) -> None:
    """Another pixel; Arrow cannot tell."""
    content = path.read_bytes()
    pixels = Dataset(path.parent).train._rows[int(path.name[6:11])]
    flip(path, content.index(pixels.tobytes()) + 17)


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are hashed from here on."""
    seen: list[Path] = []

    def counting(path: Path) -> FileChecksum:
        seen.append(path)
        return hash_file(path)

    monkeypatch.setattr("distsgd.data.shards.hash_file", counting)
    return seen


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("number", [0, 1])
def test_every_use_of_rows_finds_a_corrupt_shard(folder: Path, use: str, number: int) -> None:
    spoil(shard(folder, number))
    dataset = Dataset(folder)  # opens: only the checksum can tell
    for _ in range(2):  # and it stays so
        with pytest.raises(CorruptDataError, match=shard(folder, number).name) as caught:
            USES[use](dataset)
    assert f"distsgd data fetch --repair --dataset {folder}" in caught.value.hint
    list(dataset.test.batches())  # the other split is sound


def test_opening_hashes_nothing_and_using_hashes_once(folder: Path, hashes: list[Path]) -> None:
    dataset = Dataset(folder)
    assert len(dataset.train) == 20 and hashes == []
    for use in USES.values():
        use(dataset)
    assert len(hashes) == 3
    for use in USES.values():
        use(Dataset(folder))
    assert len(hashes) == 3


def touched(path: Path) -> None:
    os.utime(path)


def rewritten(path: Path) -> None:
    path.write_bytes(path.read_bytes())


def replaced(path: Path) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(path.read_bytes())
    beside.replace(path)


def backdated(path: Path) -> None:
    """Spoilt, with its old times put back: its ctime tells."""
    before = path.stat()
    spoil(path)
    spoil(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [touched, rewritten, replaced, backdated])
def test_a_changed_file_is_hashed_again(
    folder: Path, hashes: list[Path], change: Callable[[Path], None]
) -> None:
    Dataset(folder).verify()
    before = identity_of(shard(folder))
    while identity_of(shard(folder)) == before:  # until the clock of the file system has moved
        change(shard(folder))
    del hashes[:]
    Dataset(folder).verify()
    assert hashes == [shard(folder)]


def test_a_young_file_is_not_remembered(
    folder: Path, hashes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "_SETTLED_NS", 10**18)
    for times in (3, 6):
        assert Dataset(folder).verify() == ()
        assert len(hashes) == times


def test_another_process_is_believed(
    folder: Path, hashes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = pickle.loads(pickle.dumps(Dataset(folder).verify()))
    monkeypatch.setattr(verified, "_known", {})
    del hashes[:]
    Dataset(folder, told).verify()
    assert hashes == []


def test_but_not_one_on_another_machine(
    folder: Path, hashes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [(at._replace(boot="another"), found) for at, found in Dataset(folder).verify()]
    monkeypatch.setattr(verified, "_known", {})
    del hashes[:]
    Dataset(folder, told).verify()
    assert len(hashes) == 3


def test_what_is_mapped_counts_not_what_lies_there_by_now(folder: Path) -> None:
    good = shard(folder).read_bytes()
    spoil(shard(folder))
    dataset = Dataset(folder)
    beside = shard(folder).with_suffix(".new")
    beside.write_bytes(good)
    beside.replace(shard(folder))
    with pytest.raises(CorruptDataError):
        dataset.verify()
    Dataset(folder).verify()


def test_a_shard_that_is_gone_by_now_is_read_from_its_mapping(folder: Path) -> None:
    dataset = Dataset(folder)
    good = shard(folder).read_bytes()
    shard(folder).unlink()
    dataset.verify()
    shard(folder).write_bytes(good)
    spoil(shard(folder))
    dataset = Dataset(folder)
    shard(folder).unlink()
    with pytest.raises(CorruptDataError):
        dataset.verify()


def test_a_corrupt_file_is_remembered_as_what_it_is(folder: Path) -> None:
    spoil(shard(folder))
    with pytest.raises(CorruptDataError):
        Dataset(folder).verify()
    assert known_checksum(identity_of(shard(folder))) == hash_file(shard(folder))[1]
