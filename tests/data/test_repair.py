"""`data fetch --repair`: the files that are wrong are written again, and no others."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from data_support import LOCK, flip, snapshot, times, write_tiny
from support import Run

from distsgd.data.cifar10 import fetch
from distsgd.data.cifar10.fetch import fetch_cifar10
from distsgd.data.cifar10.repair import repair_dataset, verify_dataset
from distsgd.data.locations import SAMPLE
from distsgd.errors import CorruptDataError, DatasetError, SourceError

THIRD, TEST = "train-00003-of-00008.arrow", "test-00000-of-00001.arrow"


@pytest.fixture
def fetched(cache: Path, reference: Path) -> Path:
    """A cache that holds the whole dataset."""
    return Path(shutil.copytree(reference, cache / "datasets" / "cifar10"))


def cut(path: Path) -> None:
    os.truncate(path, 12_345)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def empty(path: Path) -> None:
    os.truncate(path, 0)


def assert_repaired(folder: Path, source: Path | str, before: dict[str, tuple[int, int]],
                  whole: dict[str, str], *names: str) -> None:  # fmt: skip
    """Exactly these have been written anew, and all is as it was."""
    found = repair_dataset(source=str(source))
    assert sorted(found.repaired) == sorted(names)
    after = times(folder)
    assert {name for name in after if after[name] != before.get(name)} == set(names)
    assert snapshot(folder) == whole
    assert verify_dataset(folder).manifest.digest == found.digest
    assert sorted(path.name for path in folder.parent.iterdir()) == [LOCK, "cifar10"]


@pytest.mark.parametrize("damage", [cut, grow, empty, Path.unlink, lambda path: flip(path, 9_999)])
def test_a_damaged_shard_alone_is_written_again(
    fetched: Path, binary_folder: Path, reference_bytes: dict[str, str], damage: object
) -> None:
    before = times(fetched)
    assert callable(damage)
    damage(fetched / THIRD)
    damage(fetched / TEST)
    assert_repaired(fetched, binary_folder, before, reference_bytes, THIRD, TEST)


def test_a_damaged_manifest_is_made_of_sound_shards_without_a_source(
    fetched: Path, reference_bytes: dict[str, str]
) -> None:
    for damage in (cut, Path.unlink, lambda path: flip(path, 500)):
        before = times(fetched)
        damage(fetched / "manifest.json")
        assert_repaired(fetched, "/nowhere", before, reference_bytes, "manifest.json")


def test_a_damaged_manifest_beside_a_damaged_shard(
    fetched: Path, binary_folder: Path, reference_bytes: dict[str, str]
) -> None:
    before = times(fetched)
    flip(fetched / "manifest.json", 500)
    flip(fetched / THIRD, 1_000_000)
    assert_repaired(fetched, binary_folder, before, reference_bytes, THIRD, "manifest.json")


def test_two_shards_swapped(
    fetched: Path, binary_folder: Path, reference_bytes: dict[str, str]
) -> None:
    before, other = times(fetched), "train-00005-of-00008.arrow"
    (fetched / THIRD).rename(fetched / "aside")
    (fetched / other).rename(fetched / THIRD)
    (fetched / "aside").rename(fetched / other)
    assert_repaired(fetched, binary_folder, before, reference_bytes, THIRD, other)


def test_what_is_whole_is_left_alone(fetched: Path) -> None:
    before = times(fetched)
    assert repair_dataset(source="/nowhere").repaired == ()
    assert times(fetched) == before


def test_a_cached_archive_is_used(
    fetched: Path, cache: Path, binary_archive: Path, closed_url: str,
    reference_bytes: dict[str, str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from data_support import sha256

    monkeypatch.setattr(fetch, "OFFICIAL_URL", closed_url)
    monkeypatch.setattr(fetch, "_OFFICIAL_SHA256", sha256(binary_archive))
    (cache / "downloads").mkdir()
    shutil.copy(binary_archive, cache / "downloads" / "cifar-10-binary.tar.gz")
    before = times(fetched)
    empty(fetched / THIRD)
    assert_repaired(fetched, "official", before, reference_bytes, THIRD)
    assert not (cache / "downloads").exists()


def test_without_a_source_nothing_is_touched(fetched: Path) -> None:
    flip(fetched / THIRD, 1_000_000)
    before = times(fetched)
    with pytest.raises(SourceError, match="/nowhere"):
        repair_dataset(source="/nowhere")
    assert times(fetched) == before


def test_what_a_killed_repair_left_is_swept(fetched: Path) -> None:
    (fetched / f".{THIRD}.123.tmp").write_bytes(b"half")
    repair_dataset()
    assert not list(fetched.glob(".*"))


def test_the_sample_is_made_of_cifar10(
    tmp_path: Path, binary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Path(shutil.copytree(SAMPLE, tmp_path / "sample"))
    whole, before = snapshot(sample), times(sample)
    shard = "train-00001-of-00002.arrow"
    flip(sample / shard, 100_000)
    assert repair_dataset(str(sample), str(binary_folder)).repaired == (shard,)
    assert snapshot(sample) == whole
    for module in ("locations", "find", "cifar10.repair"):
        monkeypatch.setattr(f"distsgd.data.{module}.SAMPLE", sample)
    cut(sample / "manifest.json")
    assert repair_dataset("sample", str(binary_folder)).repaired == ("manifest.json",)
    assert snapshot(sample) == whole
    after = times(sample)
    assert {name for name in after if after[name] == before[name]} == {
        "train-00000-of-00002.arrow", TEST,
    }  # fmt: skip


def test_a_dataset_of_ones_own_cannot_be_made_again(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    shard = tmp_path / "tiny" / "train-00000-of-00002.arrow"
    grow(shard)
    before = times(tmp_path / "tiny")
    with pytest.raises(DatasetError, match=r"an imported dataset \('tiny'\)") as caught:
        repair_dataset(str(tmp_path / "tiny"))
    assert shard.name in caught.value.hint
    assert times(tmp_path / "tiny") == before
    cut_to = (tmp_path / "tiny" / "manifest.json").read_bytes()[:50]
    (tmp_path / "tiny" / "manifest.json").write_bytes(cut_to)
    with pytest.raises(DatasetError, match=r"the source of .* is unknown"):
        repair_dataset(str(tmp_path / "tiny"))


def test_other_bytes_than_before_are_not_put_there(
    fetched: Path, binary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another version of the library wrote the same rows in other bytes."""
    from distsgd.data.cifar10 import repair

    cut(fetched / THIRD)
    before = times(fetched)
    monkeypatch.setattr(repair, "CLASSES", tuple(reversed(repair.CLASSES)))
    with pytest.raises(CorruptDataError, match="with other bytes"):
        repair_dataset(source=str(binary_folder))
    assert times(fetched) == before


def test_the_command_line_says_what_it_repaired(
    distsgd_here: Run, fetched: Path, binary_folder: Path
) -> None:
    command = ("data", "fetch", "--repair", "--source", binary_folder)
    whole = distsgd_here(*command)
    assert whole.returncode == 0
    assert whole.stdout == f"nothing to repair: 9 shards of {fetched} are intact\n"
    flip(fetched / THIRD, 1_000_000)
    refused = distsgd_here("train", "--workers", 0, "--run-dir", "run")
    assert refused.returncode == 1
    assert THIRD in refused.stderr and "`distsgd data fetch --repair`" in refused.stderr
    repaired = distsgd_here(*command)
    assert repaired.returncode == 0
    assert repaired.stdout == f"repaired {THIRD} of {fetched}\n"
    answer = json.loads(distsgd_here(*command, "--json").stdout)
    assert answer["repaired"] == [] and answer["dataset"] == str(fetched)


@pytest.mark.parametrize("flags", [("--repair", "--force"), ("--repair", "--shards", 3),
                                   ("--dataset", "sample")])  # fmt: skip
def test_flags_that_do_not_go_together(distsgd_here: Run, flags: tuple[object, ...]) -> None:
    assert distsgd_here("data", "fetch", *flags).returncode == 2


def test_fetch_without_repair_makes_all_anew_as_before(
    fetched: Path, binary_folder: Path, reference_bytes: dict[str, str]
) -> None:
    flip(fetched / THIRD, 1_000_000)
    fetch_cifar10(str(binary_folder))
    assert snapshot(fetched) == reference_bytes
