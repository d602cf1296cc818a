"""What a node keeps of a remote dataset: within a bound, once for all, and never half a file."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_support import sample_in_shards

from distsgd.data.dataset import Dataset
from distsgd.data.manifest import Shard
from distsgd.data.remote import node_cache
from distsgd.data.remote.node_cache import NodeCache
from distsgd.data.shards import write_dataset
from distsgd.data.split import StreamedSplit
from distsgd.errors import DatasetError, StorageError

SHARDS = 16


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample in many shards."""
    return sample_in_shards(tmp_path_factory.mktemp("shards") / "many", SHARDS)


class Fetched:
    """Counts what a cache fetches."""

    def __init__(self, source: Path) -> None:
        self.source, self.files = source, Counter[str]()

    def __call__(self, entry: Shard, part: Path) -> None:
        self.files[entry.file] += 1
        shutil.copyfile(self.source / entry.file, part)


def test_what_is_needed_last_makes_room(many: Path, tmp_path: Path) -> None:
    entries = Dataset(many).manifest.train
    fetched = Fetched(many)
    size = max(entry.size for entry in entries)
    (tmp_path / "all" / "set").mkdir(parents=True)
    cache = NodeCache(tmp_path / "all" / "set", 3 * size, fetched)
    files = [entry.file for entry in entries]
    cache.need(files)
    for entry in entries[:3]:
        assert cache.prefetch(entry)
    assert not cache.prefetch(entries[3])  # the others are needed sooner
    cache.need(files[1:] + files[:1])
    assert cache.prefetch(entries[3])
    there = sorted(path.name for path in (tmp_path / "all" / "set").glob("*.arrow"))
    assert there == files[1:4]
    held = [cache.hold(entry) for entry in entries[1:4]]
    cache.need(files[4:])
    assert not cache.prefetch(entries[4])  # all are in use
    held.pop().release()
    cache.hold(entries[4]).release()
    assert max(fetched.files.values()) == 1
    other = NodeCache(tmp_path / "all" / "other", 3 * size, fetched)
    (tmp_path / "all" / "other").mkdir()
    other.hold(entries[5]).release()  # the bound is for all datasets together
    assert not (tmp_path / "all" / "set" / files[4]).exists()


def test_what_arrives_while_room_is_counted_is_counted_once(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = Dataset(many).manifest.train
    (folder := tmp_path / "all" / "set").mkdir(parents=True)
    part = folder / f".{entries[0].file}.part"
    part.write_bytes((many / entries[0].file).read_bytes())
    sizes = node_cache._sizes

    def then_it_arrives(of: Path, ending: str) -> dict[Path, int]:
        found = sizes(of, ending)
        if part.exists():
            part.rename(folder / entries[0].file)
        return found

    monkeypatch.setattr(node_cache, "_sizes", then_it_arrives)
    cache = NodeCache(folder, entries[0].size + entries[1].size, Fetched(many))
    cache.need([entry.file for entry in entries])
    assert cache.prefetch(entries[1]) and (folder / entries[0].file).exists()


def test_what_an_interrupted_process_left_is_no_shard(many: Path, tmp_path: Path) -> None:
    entry = Dataset(many).manifest.train[0]
    fetched = Fetched(many)
    (folder := tmp_path / "all" / "set").mkdir(parents=True)
    (folder / f".{entry.file}.part").write_bytes(b"half of it")
    (folder / ".another.arrow.part").write_bytes(bytes(entry.size))
    (folder / entry.file).write_bytes(b"not whole")
    cache = NodeCache(folder, entry.size, fetched)
    held = cache.hold(entry)
    assert held.path.read_bytes() == (many / entry.file).read_bytes()
    assert not list(folder.glob(".*.part"))


def test_many_threads_want_the_same(many: Path, tmp_path: Path) -> None:
    entries = Dataset(many).manifest.train
    (folder := tmp_path / "all" / "set").mkdir(parents=True)
    fetched = Fetched(many)
    caches = [NodeCache(folder, None, fetched) for _ in range(6)]
    threads = [
        threading.Thread(target=lambda one=cache: [one.hold(entry) for entry in entries])
        for cache in caches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(fetched.files.values()) == {1} and len(fetched.files) == SHARDS


def test_a_streamed_split_gives_what_the_files_have(many: Path, tmp_path: Path) -> None:
    whole = Dataset(many)
    (folder := tmp_path / "all" / "set").mkdir(parents=True)
    size = max(entry.size for entry in whole.manifest.train)
    cache = NodeCache(folder, 4 * size, Fetched(many))
    split = StreamedSplit(whole.manifest, cache)
    assert len(split) == len(whole.train)
    assert np.array_equal(split.labels, whole.train.labels)
    indices = np.random.default_rng(0).integers(len(split), size=(3, 50))
    pixels, expected = (np.empty((150, whole.manifest.features), np.uint8) for _ in range(2))
    split.gather(indices.reshape(-1), pixels)
    whole.train.gather(indices.reshape(-1), expected)
    assert np.array_equal(pixels, expected)
    assert np.array_equal(split.labels_of(indices), whole.train.labels[indices])
    assert sum(path.stat().st_size for path in folder.glob("*.arrow")) <= 4 * size


def mapped(folder: Path) -> set[str]:
    """Files below a folder that this process has mapped, removed ones too."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[-1] for line in lines if str(folder) in line}


def test_labels_keep_no_shard_mapped(many: Path, tmp_path: Path) -> None:
    """A mapped file takes its room on the disk, although it was removed."""
    manifest = Dataset(many).manifest
    (folder := tmp_path / "all" / "set").mkdir(parents=True)
    size = max(entry.size for entry in manifest.train)
    seen = []

    class Watched(Fetched):
        def __call__(self, entry: Shard, part: Path) -> None:
            seen.append(len(mapped(folder)))
            super().__call__(entry, part)

    split = StreamedSplit(manifest, NodeCache(folder, 2 * size, Watched(many)))
    assert len(split.labels) == len(split)
    assert len(seen) == SHARDS and max(seen) <= 2


def test_a_label_without_a_class_is_told(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, 1], dtype=np.uint8)
    pixels = np.zeros((4, 3), dtype=np.uint8)
    (few := tmp_path / "few").mkdir()
    manifest = write_dataset(
        few, name="few", shape=(3,), classes=["a", "b"],
        train=(pixels, labels), test=(pixels, labels), shards=1,
    )  # fmt: skip
    (folder := tmp_path / "all" / "set").mkdir(parents=True)
    split = StreamedSplit(manifest, NodeCache(folder, None, Fetched(few)))
    with pytest.raises(DatasetError, match="label 2, but its manifest names only 2 classes"):
        split.labels_of(np.arange(4))


def test_links_in_a_cache_that_others_may_write_to_lead_nowhere(many: Path, tmp_path: Path) -> None:
    entry = Dataset(many).manifest.train[0]
    (folder := tmp_path / "all" / "set").mkdir(parents=True)
    (precious := tmp_path / "precious").write_bytes(b"precious")
    for name in (f".{entry.file}.part", f".{entry.file}.found"):
        (folder / name).symlink_to(precious)
    fetched = Fetched(many)
    cache = NodeCache(folder, None, fetched)
    cache.hold(entry).release()  # a part or a note is made anew
    assert (folder / entry.file).is_file() and fetched.files[entry.file] == 1

    (folder / entry.file).unlink()
    (folder / entry.file).symlink_to(many / entry.file)
    with pytest.raises(StorageError, match="it is a symbolic link"):
        cache.hold(entry)
    lock = next(path for path in (tmp_path / "all" / ".locks").iterdir() if "room" not in path.name)
    for path in (folder / entry.file, lock):
        path.unlink()
    lock.symlink_to(precious)
    with pytest.raises(StorageError, match="it is a symbolic link"):
        cache.hold(entry)
    assert precious.read_bytes() == b"precious"
