"""download(): against a real web server that cuts, stalls, refuses and forgets."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from data_support import Site

from distsgd.data.remote import fetching
from distsgd.data.remote.fetching import download
from distsgd.errors import CorruptDataError, SourceError, StorageError

CONTENT = np.random.default_rng(0).bytes(1_500_000)
SUM = hashlib.sha256(CONTENT).hexdigest()


class Fetched:
    """A download into a folder, with the progress that it reported."""

    def __init__(self, folder: Path, site: Site) -> None:
        self.path = folder / "file.tar.gz"
        self.part = folder / "file.tar.gz.part"
        self.site = site
        self.done: list[int] = []

    def __call__(self, sha256: str = SUM) -> None:
        download(self.site.url, self.path, len(self.site.content), sha256, self.done.append)

    def leave_part(self, content: bytes) -> None:
        self.part.write_bytes(content)


@pytest.fixture
def fetched(tmp_path: Path, site: Site) -> Fetched:
    site.content = CONTENT
    return Fetched(tmp_path, site)


def is_whole(fetched: Fetched) -> bool:
    return fetched.path.read_bytes() == CONTENT and not fetched.part.exists()


def test_a_whole_file_arrives(fetched: Fetched) -> None:
    fetched()
    assert is_whole(fetched)
    assert fetched.site.asked == [""]


def test_progress_grows_to_the_total(fetched: Fetched) -> None:
    fetched()
    assert len(fetched.done) > 3
    assert fetched.done == sorted(set(fetched.done))
    assert fetched.done[-1] == len(CONTENT)


def test_a_site_that_does_not_tell_the_length(fetched: Fetched) -> None:
    fetched.site.tells_length = False
    fetched.leave_part(CONTENT[:1000])
    fetched()
    assert is_whole(fetched)


def test_a_download_that_breaks_off_is_resumed(fetched: Fetched) -> None:
    fetched.site.cut_after = 1_000_000
    fetched()
    assert is_whole(fetched)
    first, second = fetched.site.asked
    assert first == "" and second.startswith("bytes=")
    kept = int(second[len("bytes=") : -1])
    assert 500_000 < kept <= 1_000_000
    assert fetched.site.sent[-1] == len(CONTENT) - kept
    assert fetched.done == sorted(set(fetched.done))


def test_a_site_that_breaks_off_every_time_is_overcome(fetched: Fetched) -> None:
    fetched.site.cut_after = 400_000
    fetched()
    assert is_whole(fetched)
    assert len(fetched.site.asked) > 3


def test_what_an_earlier_download_left_is_resumed(fetched: Fetched) -> None:
    fetched.leave_part(CONTENT[:700_000])
    fetched.site.cut_after = 0
    with pytest.raises(SourceError, match=r"cifar-10-binary\.tar\.gz cannot be read: "):
        fetched()
    assert fetched.part.read_bytes() == CONTENT[:700_000] and not fetched.path.exists()
    fetched.site.cut_after = None
    fetched()
    assert is_whole(fetched)
    assert fetched.site.asked[-1] == "bytes=700000-"
    assert min(fetched.done) > 700_000


def test_a_site_without_ranges_is_read_from_the_start(fetched: Fetched) -> None:
    fetched.site.ranges = False
    fetched.leave_part(CONTENT[:1000])
    fetched()
    assert is_whole(fetched)
    assert fetched.site.asked == ["bytes=1000-"]
    assert fetched.site.sent == [len(CONTENT)]


def test_a_whole_part_is_taken_as_it_is(fetched: Fetched) -> None:
    fetched.leave_part(CONTENT)
    fetched()
    assert is_whole(fetched)
    assert fetched.site.asked == []


@pytest.mark.parametrize("part", [CONTENT + b"more", b"x" * 100, b"x" * len(CONTENT)])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_wrong_part_is_replaced(fetched: Fetched, part: bytes, ranges: bool) -> None:
    fetched.site.ranges = ranges
    fetched.leave_part(part)
    fetched()
    assert is_whole(fetched)


def test_a_wrong_checksum_removes_what_came(fetched: Fetched) -> None:
    with pytest.raises(CorruptDataError, match=r"cifar-10-binary\.tar\.gz has the wrong checksum"):
        fetched("0" * 64)
    assert not fetched.part.exists()
    assert not fetched.path.exists()


def test_a_compressing_site_does_not_spoil_the_bytes(fetched: Fetched) -> None:
    fetched.site.content = gzip.compress(CONTENT)  # as the real file is compressed already
    fetched.site.gzips = True
    fetched(hashlib.sha256(fetched.site.content).hexdigest())
    assert fetched.path.read_bytes() == fetched.site.content


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_an_answer_that_is_an_error(fetched: Fetched, status: int) -> None:
    fetched.site.status = status
    fetched.leave_part(CONTENT[:100])
    with pytest.raises(SourceError, match=f"the server answers {status}"):
        fetched()
    assert fetched.part.read_bytes() == CONTENT[:100]
    assert not fetched.path.exists()


def test_a_refused_connection(closed_url: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the server cannot be reached") as caught:
        download(closed_url, tmp_path / "file", 1, SUM, print)
    assert "Check the network" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_site_that_stalls(fetched: Fetched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_DOWNLOAD_SECONDS", (0.3, 0.3))
    fetched.site.stall_after = 0
    with pytest.raises(SourceError, match="no answer in time"):
        fetched()
    assert not fetched.path.exists()


def test_a_site_that_stalls_again_and_again_is_overcome(
    fetched: Fetched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_DOWNLOAD_SECONDS", (0.3, 0.3))
    monkeypatch.setattr(fetching, "PAUSES", ())
    fetched.site.stall_after = 600_000
    fetched()
    assert is_whole(fetched)


def test_a_site_that_drips_is_given_up(fetched: Fetched, monkeypatch: pytest.MonkeyPatch) -> None:
    """No read of it takes long: each brings a byte."""
    monkeypatch.setattr(fetching, "_WINDOW_SECONDS", 0.1)
    fetched.site.drip = 0.01
    with pytest.raises(SourceError, match=r"read: less than 64 KiB in 0\.1 s"):
        fetched()
    assert fetched.part.read_bytes() == CONTENT[: fetched.done[-1]]
    assert fetched.done[:3] == [1, 2, 3]


def test_an_older_file_is_replaced(fetched: Fetched) -> None:
    fetched.path.write_bytes(b"old")
    fetched()
    assert is_whole(fetched)


def test_a_folder_that_is_not_there(fetched: Fetched, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*nowhere"):
        download(fetched.site.url, tmp_path / "nowhere" / "file", 1, SUM, print)
