"""Where datasets lie, and what is said when they do not."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest
from data_support import write_tiny

from distsgd.data.find import find_dataset
from distsgd.data.locations import (
    SAMPLE,
    cache_folder,
    dataset_folder,
    expanded,
    home_folder,
    imported_datasets,
    repair_hint,
)
from distsgd.errors import DatasetError, StorageError, UsageError


def test_the_cache_can_be_put_elsewhere(cache: Path) -> None:
    assert cache_folder() == cache
    assert dataset_folder("cifar10") == cache / "datasets" / "cifar10"


def test_the_cache_may_lie_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DISTSGD_CACHE", "~/data")
    assert cache_folder() == tmp_path / "data"


def test_without_a_choice_it_is_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DISTSGD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in cache_folder().parents


def test_without_a_home_only_what_needs_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    for name in ("HOME", "DISTSGD_CACHE", "DISTSGD_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    write_tiny(tmp_path / "tiny")
    assert find_dataset(str(tmp_path / "tiny")) == tmp_path / "tiny"
    assert "--repair --dataset" in repair_hint(tmp_path / "tiny")
    assert imported_datasets() == [] and find_dataset("sample") == SAMPLE
    for folder, variable in ((cache_folder, "DISTSGD_CACHE"), (home_folder, "DISTSGD_HOME")):
        with pytest.raises(StorageError, match=f"Set HOME, or {variable}"):
            folder()
    for path in ("~/x", "~nobody-of-that-name/x"):
        with pytest.raises(UsageError, match="home folder that cannot be found"):
            expanded(path)


def test_the_sample_is_always_there() -> None:
    assert find_dataset("sample") == SAMPLE


def test_cifar10_is_found_once_it_is_in_the_cache(settled: Path) -> None:
    assert find_dataset("cifar10") == settled / "datasets" / "cifar10"


def test_before_that_the_way_to_get_it_is_told() -> None:
    with pytest.raises(DatasetError, match="CIFAR-10 is not in the cache yet") as caught:
        find_dataset("cifar10")
    assert "distsgd data fetch" in caught.value.hint


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    assert find_dataset(str(tmp_path / "tiny")) == tmp_path / "tiny"


def test_a_path_without_a_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=rf"no dataset at {tmp_path}: it has no manifest\.json"):
        find_dataset(str(tmp_path))
    with pytest.raises(DatasetError, match=r"no dataset at .*gone: no such folder"):
        find_dataset(str(tmp_path / "gone"))
