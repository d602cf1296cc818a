"""The process that fetches shards before they are needed: one a node, gone with its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from data_support import sample_in_shards, wait_until
from support import processes_with

from distsgd.data.find import find_dataset
from distsgd.data.manifest import read_manifest
from distsgd.data.remote.fetching_ahead import FetchingAhead
from distsgd.data.remote.remote_folder import RemoteFolder, known_source

SHARDS = 6

NEEDS_ALL = """
import sys
from pathlib import Path
from distsgd.data.manifest import read_manifest
from distsgd.data.remote.fetching_ahead import FetchingAhead
from distsgd.data.remote.remote_folder import RemoteFolder, known_source
folder = Path(sys.argv[1])
ahead = FetchingAhead(RemoteFolder(folder, known_source(folder), None))
files = [entry.file for entry in read_manifest(Path(sys.argv[1])).train]
ahead.follow(files, len(files))
print("said", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this node, for a dataset of which nothing is here yet."""
    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path / "cache"))
    return find_dataset(sample_in_shards(tmp_path / "there", SHARDS).as_uri())


def ahead_of(folder: Path, limit: int | None = None) -> FetchingAhead:
    return FetchingAhead(RemoteFolder(folder, known_source(folder), limit))


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.arrow"))


def at_work(folder: Path) -> list[int]:
    """The processes that fetch ahead for it."""
    module = b"\0distsgd.data.remote.fetching_ahead\0"
    found = []
    for pid in processes_with(str(folder)):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if module in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_it_fetches_what_is_said_and_ends_with_us(folder: Path) -> None:
    files = [entry.file for entry in read_manifest(folder).train]
    ahead = ahead_of(folder)
    ahead.follow(files[:2], SHARDS)
    assert wait_until(lambda: shards(folder) == files[:2])
    ahead.follow(files[3:], 1)
    assert wait_until(lambda: shards(folder) == [*files[:2], files[3]])
    assert len(at_work(folder)) == 1
    del ahead
    assert at_work(folder) == []


def test_no_more_than_there_is_room_for_and_the_soonest(folder: Path) -> None:
    entries = read_manifest(folder).train
    files = [entry.file for entry in entries]
    limit = 3 * max(entry.size for entry in entries)
    ahead = ahead_of(folder, limit)
    ahead.follow(files, SHARDS)
    assert wait_until(lambda: shards(folder) == files[:3])
    ahead.follow(files[2:], SHARDS)
    assert wait_until(lambda: shards(folder) == files[2:5])


def test_one_a_node_and_the_next_takes_its_place(folder: Path) -> None:
    files = [entry.file for entry in read_manifest(folder).train]
    first = subprocess.Popen(
        [sys.executable, "-c", NEEDS_ALL, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdin is not None and first.stdout is not None
    try:
        assert first.stdout.readline() == "said\n"
        assert wait_until(lambda: shards(folder) == files)
        theirs = at_work(folder)
        ahead = ahead_of(folder)
        ahead.follow(files, SHARDS)
        assert at_work(folder) == theirs and len(theirs) == 1
        first.kill()  # what it has begun ends with it, although nobody has told it to
        assert wait_until(lambda: at_work(folder) == [])
        (folder / files[0]).unlink()

        def fetched_by_ours() -> bool:
            ahead.follow(files, SHARDS)  # the lock may be released after the process is gone
            return shards(folder) == files

        assert wait_until(fetched_by_ours)
        assert len(at_work(folder)) == 1
    finally:
        first.kill()
        first.communicate()


def test_when_it_dies_another_one_is_begun(folder: Path) -> None:
    files = [entry.file for entry in read_manifest(folder).train]
    ahead = ahead_of(folder)
    ahead.follow(files[:1], SHARDS)
    assert wait_until(lambda: shards(folder) == files[:1])
    (pid,) = at_work(folder)
    os.kill(pid, signal.SIGKILL)

    def all_here() -> bool:
        ahead.follow(files, SHARDS)  # the first time it finds out that it has died
        return shards(folder) == files

    assert wait_until(all_here)
    assert len(at_work(folder)) == 1 and at_work(folder) != [pid]


def test_trouble_is_left_to_who_needs_the_shard(folder: Path, tmp_path: Path) -> None:
    files = [entry.file for entry in read_manifest(folder).train]
    (tmp_path / "there" / files[0]).rename(tmp_path / "gone")
    ahead = ahead_of(folder)
    ahead.follow(files, SHARDS)
    ahead.follow(files[1:2], SHARDS)
    assert wait_until(lambda: files[1] in shards(folder))
    assert len(at_work(folder)) == 1 and files[0] not in shards(folder)
