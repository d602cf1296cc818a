"""A disk that is full, or a limit on the size of files: said in words, and nothing left."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import small_cifar10
from data_support import LOCK, Site, snapshot
from support import PATIENCE

from distsgd.data.cifar10 import fetch
from distsgd.data.cifar10.fetch import fetch_cifar10
from distsgd.data.locations import SAMPLE
from distsgd.data.remote.fetching import download
from distsgd.errors import StorageError


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of 20 MB, as the cache."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    monkeypatch.setenv("DISTSGD_CACHE", str(disk))
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def names_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "datasets").iterdir())


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The room is not looked at before, as when somebody else fills the disk meanwhile."""
    monkeypatch.setattr(fetch, "_NEEDED_BYTES", 0)


def test_a_disk_too_small_is_noticed_before_anything_is_read(
    small_disk: Path, binary_folder: Path
) -> None:
    said: list[str] = []
    with pytest.raises(StorageError, match="no space left on device") as caught:
        fetch_cifar10(str(binary_folder), say=said.append)
    assert str(small_disk) in caught.value.problem
    assert "Free some space" in caught.value.hint
    assert said == []
    assert names_in(small_disk) == [LOCK]


def test_a_disk_that_fills_up_leaves_nothing(
    small_disk: Path, binary_folder: Path, unmeasured: None
) -> None:
    with pytest.raises(StorageError, match="no space left on device") as caught:
        fetch_cifar10(str(binary_folder))
    assert "Free some space" in caught.value.hint
    assert names_in(small_disk) == [LOCK]
    assert shutil.disk_usage(small_disk).used < 100_000


def test_a_disk_that_fills_up_leaves_an_older_dataset_alone(
    small_disk: Path, binary_folder: Path, unmeasured: None
) -> None:
    folder = Path(shutil.copytree(SAMPLE, small_disk / "datasets" / "cifar10"))
    before = snapshot(folder)
    with pytest.raises(StorageError, match="no space left on device"):
        fetch_cifar10(str(binary_folder), force=True)
    assert snapshot(folder) == before
    assert names_in(small_disk) == [LOCK, "cifar10"]


def test_a_download_onto_a_full_disk(small_disk: Path, site: Site) -> None:
    site.content = np.random.default_rng(0).bytes(25_000_000)
    with pytest.raises(StorageError, match=r"cannot write .*file\.part: no space left"):
        download(site.url, small_disk / "file", len(site.content), "0" * 64, print)
    assert [path.name for path in small_disk.iterdir()] == ["file.part"]


def no_large_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))


def test_a_limit_on_the_size_of_files(cache: Path, binary_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, small_cifar10.__file__, "data", "fetch", "--source", binary_folder],
        preexec_fn=no_large_files,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: cannot write {cache}")
    assert "file too large" in last
    assert "Free some space" in last
    assert names_in(cache) == [LOCK]


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match=r"cannot write .*: not a directory"):
        fetch_cifar10()
