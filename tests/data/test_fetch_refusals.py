"""Sources that are refused: with the right error, by name, and with the cache left as it was."""

from __future__ import annotations

import bz2
import json
import lzma
import os
import pickle
import shutil
from pathlib import Path

import pytest
from data_support import LOCK, flip, pack, python3_pickle, snapshot
from small_cifar10 import BATCH_ROWS
from support import Run

from distsgd.data.cifar10.fetch import fetch_cifar10
from distsgd.errors import CorruptDataError, DistsgdError, SourceError

RECORD = 3073


def refused(source: Path, error: type[DistsgdError], *named: str, cache: Path) -> DistsgdError:
    """The error of fetching ``source`` over an existing dataset, which must not be touched."""
    before = snapshot(cache)
    assert "datasets/cifar10/manifest.json" in before
    with pytest.raises(DistsgdError) as caught:
        fetch_cifar10(str(source), force=True)
    assert type(caught.value) is error
    for name in named:
        assert name in caught.value.problem
    assert snapshot(cache) == before
    assert sorted(path.name for path in (cache / "datasets").iterdir()) == [LOCK, "cifar10"]
    return caught.value


def linked(folder: Path, copy: Path, *own: str) -> Path:
    """A folder of links to another's files; those in ``own`` are copies, to be spoilt."""
    copy.mkdir(parents=True)
    for path in folder.iterdir():
        if path.name in own:
            shutil.copy(path, copy)
        else:
            (copy / path.name).symlink_to(path)
    return copy


def test_nothing_appears_where_nothing_was(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        fetch_cifar10(str(tmp_path / "missing"))
    assert [path.name for path in cache.rglob("*")] == ["datasets", LOCK]


# --- paths and archives


def test_a_path_that_is_not_there(settled: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.tar.gz"
    error = refused(missing, SourceError, f"there is no file or folder {missing}", cache=settled)
    assert "source takes auto, official, npm" in error.hint


@pytest.mark.parametrize("content", [b"", b"hello", bytes(100_000), b"\x1f\x8b\x08" + bytes(99)])
def test_a_file_that_is_no_archive(settled: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "letter.tar.gz"
    path.write_bytes(content)
    refused(path, SourceError, "letter.tar.gz", cache=settled)


@pytest.mark.parametrize("kept", [10, 1_000, 1_000_000, 0.3, 0.7, 0.99, 0.9999])
def test_an_archive_cut_short(
    settled: Path, tmp_path: Path, binary_archive: Path, kept: float
) -> None:
    size = int(kept * binary_archive.stat().st_size) if kept < 1 else int(kept)
    path = shutil.copy(binary_archive, tmp_path / "short.tar.gz")
    os.truncate(path, size)
    error = refused(path, SourceError, "short.tar.gz is not a complete archive", cache=settled)
    assert "download it again" in error.hint
    path.unlink()


@pytest.mark.parametrize("archive", ["binary_archive", "python_archive"])
@pytest.mark.parametrize("share", [0.1, 0.45, 0.9])
def test_an_archive_damaged_on_its_way(
    settled: Path, tmp_path: Path, archive: str, share: float, request: pytest.FixtureRequest
) -> None:
    path = shutil.copy(request.getfixturevalue(archive), tmp_path / "damaged.tar.gz")
    flip(path, int(share * path.stat().st_size))  # into the pixels of a batch
    before = snapshot(settled)
    with pytest.raises((SourceError, CorruptDataError), match=r"damaged\.tar\.gz|_batch"):
        fetch_cifar10(str(path), force=True)
    assert snapshot(settled) == before
    path.unlink()


@pytest.mark.parametrize("squeeze", [bz2.compress, lzma.compress])
def test_a_damaged_archive_of_another_compression(
    settled: Path, tmp_path: Path, squeeze: type
) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "data_batch_1").write_bytes(os.urandom(50_000))
    plain = pack(tmp_path / "few", tmp_path / "few.tar.gz", "few").read_bytes()
    content = bytearray(squeeze(plain))
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "few.tar.xz").write_bytes(content)
    refused(tmp_path / "few.tar.xz", SourceError, "few.tar.xz", cache=settled)


def test_an_archive_without_all_six_batches(
    settled: Path, tmp_path: Path, binary_folder: Path
) -> None:
    few = linked(binary_folder, tmp_path / "few", "data_batch_1.bin", "data_batch_2.bin")
    for path in few.iterdir():
        if path.is_symlink():
            path.unlink()
    archive = pack(few, tmp_path / "few.tar.gz", "cifar-10-batches-bin")
    refused(
        archive, SourceError, "few.tar.gz does not have the six batches of CIFAR-10", cache=settled
    )


@pytest.mark.parametrize("missing", ["data_batch_1.bin", "data_batch_4.bin", "test_batch.bin"])
def test_a_folder_without_one_batch(
    settled: Path, tmp_path: Path, binary_folder: Path, missing: str
) -> None:
    few = linked(binary_folder, tmp_path / "few")
    (few / missing).unlink()
    refused(few, SourceError, "few does not have the six batches", cache=settled)


def test_a_folder_without_any_batch(settled: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.png").write_bytes(b"sand")
    refused(tmp_path / "holiday", SourceError, "holiday does not have the six", cache=settled)


def test_a_batch_that_cannot_be_read(settled: Path, tmp_path: Path, binary_folder: Path) -> None:
    odd = linked(binary_folder, tmp_path / "odd")
    (odd / "data_batch_3.bin").unlink()
    (odd / "data_batch_3.bin").mkdir()
    refused(odd, SourceError, "data_batch_3.bin cannot be read", cache=settled)


# --- altered batches


@pytest.mark.parametrize(
    ("batch", "at"),
    [
        ("data_batch_1", 0),
        ("data_batch_3", 1000 * RECORD + 17),
        ("test_batch", BATCH_ROWS * RECORD - 1),
    ],
)
def test_one_flipped_bit_in_a_batch(
    settled: Path, tmp_path: Path, binary_folder: Path, batch: str, at: int
) -> None:
    spoilt = linked(binary_folder, tmp_path / "spoilt", f"{batch}.bin")
    flip(spoilt / f"{batch}.bin", at)
    refused(spoilt, CorruptDataError, f"{batch} is not the official one", cache=settled)


def test_one_flipped_bit_in_an_archive(settled: Path, tmp_path: Path, binary_folder: Path) -> None:
    archive = tmp_path / "spoilt.tar.gz"
    spoilt = shutil.copytree(binary_folder, tmp_path / "spoilt")
    flip(spoilt / "data_batch_5.bin", 123_456)
    pack(spoilt, archive, "cifar-10-batches-bin")
    shutil.rmtree(spoilt)
    refused(archive, CorruptDataError, "data_batch_5 is not the official one", cache=settled)
    archive.unlink()


def test_two_batches_that_changed_places(
    settled: Path, tmp_path: Path, binary_folder: Path
) -> None:
    mixed = linked(binary_folder, tmp_path / "mixed")
    (mixed / "data_batch_1.bin").rename(mixed / "keep")
    (mixed / "data_batch_2.bin").rename(mixed / "data_batch_1.bin")
    (mixed / "keep").rename(mixed / "data_batch_2.bin")
    refused(mixed, CorruptDataError, "data_batch_1 is not the official one", cache=settled)


@pytest.mark.parametrize("change", [-1, -RECORD, 1])
def test_a_batch_of_another_length(
    settled: Path, tmp_path: Path, binary_folder: Path, change: int
) -> None:
    odd = linked(binary_folder, tmp_path / "odd", "data_batch_2.bin")
    size = BATCH_ROWS * RECORD + change
    os.truncate(odd / "data_batch_2.bin", size)
    refused(odd, CorruptDataError, f"data_batch_2.bin has {size} bytes", cache=settled)


# --- pickles


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.marker}",)


def spoilt_pickles(folder: Path, tmp_path: Path, content: bytes) -> Path:
    spoilt = linked(folder, tmp_path / "cifar-10-batches-py", "data_batch_1")
    (spoilt / "data_batch_1").write_bytes(content)
    return spoilt


@pytest.mark.parametrize("packed", [False, True])
def test_a_malicious_pickle_is_not_executed(settled: Path, tmp_path: Path, packed: bool) -> None:
    source, marker = tmp_path / "cifar-10-batches-py", tmp_path / "executed"
    source.mkdir()
    for batch in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (source / batch).write_bytes(pickle.dumps({b"data": Attack(marker)}, protocol=2))
    if packed:
        source = pack(source, tmp_path / "cifar-10-python.tar.gz", source.name)
    error = refused(source, SourceError, "data_batch_1 cannot be unpickled", cache=settled)
    assert "posix.system, which is refused" in error.problem
    assert not marker.exists()


@pytest.mark.parametrize("value", [{}, {b"label_names": [b"cat"]}, [1, 2, 3], "text"])
def test_a_pickle_of_something_else(
    settled: Path, tmp_path: Path, python_folder: Path, value: object
) -> None:
    source = spoilt_pickles(python_folder, tmp_path, python3_pickle(value))
    refused(source, SourceError, "data_batch_1 is not a batch of CIFAR-10", cache=settled)


def test_a_truncated_pickle(settled: Path, tmp_path: Path, python_folder: Path) -> None:
    content = (python_folder / "data_batch_1").read_bytes()[:1_000_000]
    source = spoilt_pickles(python_folder, tmp_path, content)
    refused(source, SourceError, "data_batch_1 cannot be unpickled", cache=settled)


# --- images


def spoilt_images(image_folder: Path, tmp_path: Path, name: str, content: bytes) -> Path:
    spoilt = linked(image_folder / "package", tmp_path / "package", name)
    (spoilt / name).write_bytes(content)
    return spoilt


@pytest.mark.parametrize(
    "labels",
    [b"", b"{}", b"null", b"[1, 2, 3]", b'["cat"]', json.dumps([300] * 50_000).encode()],
)
def test_labels_of_images_that_are_none(
    settled: Path, tmp_path: Path, image_folder: Path, labels: bytes
) -> None:
    source = spoilt_images(image_folder, tmp_path, "train_lables.json", labels)
    refused(source, CorruptDataError, "data_batch_1.png or its labels cannot", cache=settled)


@pytest.mark.parametrize("kept", [0, 20, 1_000_000])
def test_a_truncated_image_of_a_batch(
    settled: Path, tmp_path: Path, image_folder: Path, kept: int
) -> None:
    content = (image_folder / "package" / "data_batch_1.png").read_bytes()[:kept]
    source = spoilt_images(image_folder, tmp_path, "data_batch_1.png", content)
    refused(source, CorruptDataError, "data_batch_1.png or its labels cannot", cache=settled)


def test_images_without_labels_are_not_the_six_batches(
    settled: Path, tmp_path: Path, image_folder: Path
) -> None:
    archive = tmp_path / "bare.tgz"
    bare = linked(image_folder / "package", tmp_path / "package")
    for path in bare.glob("*.png"):
        path.unlink()
        path.write_bytes(b"")
    for path in bare.glob("*.json"):
        path.unlink()
    pack(bare, archive, "package")
    refused(archive, SourceError, "bare.tgz does not have the six batches", cache=settled)
    refused(bare, SourceError, "does not have the six batches", cache=settled)


# --- as a user sees it


def test_the_command_line_says_it_in_a_line(distsgd_here: Run, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.tar.gz").write_bytes(b"hello")
    done = distsgd_here("data", "fetch", "--source", tmp_path / "letter.tar.gz")
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert len(said) == 2  # what it reads, and what is wrong with it
    assert "letter.tar.gz is not a complete archive" in said[1]
    assert not (cache / "datasets" / "cifar10").exists()
