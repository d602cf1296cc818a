"""Files and dataset folders that are either whole or absent: written beside, synced, renamed.

A dataset is built under its lock, in a folder beside its place in the cache, and appears there in
one rename, after all of its checks.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distsgd.data.folder_files import replace_inside
from distsgd.data.locations import dataset_folder
from distsgd.data.lock_file import LockFile
from distsgd.errors import system_error

__all__ = [
    "Progress",
    "Say",
    "installed",
    "locked_dataset",
    "remove_dataset",
    "replace_file",
    "sync_file",
]

Say = Callable[[str], None]
"""Receives a line about each stage of some work."""

Progress = Callable[[str, int, int], None]
"""Receives what is being done, how much of it is done, and how much there is (0: unknown)."""

_BESIDE = "~"
"""Follows the name of the dataset. No name has one, so it separates `a` from `ab`."""


def replace_file(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Write a file, so that it has either its old or its new content at any time.

    A symbolic link stays one: its target is replaced. A device, or a pipe that is being read, is
    written to: a file in place of /dev/null would break every other program.

    Args:
        path: the file.
        content: all of its content.
        shared: whether others may read it, as far as the umask allows; else only the user may.

    Raises:
        OSError: it cannot be written; an old file is untouched.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        _write_into(path, content)
        return
    replace_inside(path, content, mode=0o666 if shared else 0o600)


def _write_into(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # a pipe without a reader is an error
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def sync_file(path: Path) -> None:
    """Make the content of a file, or the entries of a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked_dataset(name: str, say: Say) -> Iterator[Path]:
    """Hold the lock of a dataset of the cache; yields its folder, which may not exist.

    Remains of a process that died are removed.

    Args:
        name: name of the dataset.
        say: called with a message while another process holds the lock.

    Raises:
        DistsgdError: for an `OSError` of the system, here or in the body.
    """
    target = dataset_folder(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = LockFile(target.with_name(f".{name}.lock"))
        if not lock.acquire(wait=False):
            say(f"another process is working on the dataset {name}; waiting for it")
            lock.acquire()
        try:
            _sweep(target)
            yield target
        finally:
            lock.release()
    except OSError as error:
        raise system_error(error, target.parent) from None


def remove_dataset(name: str) -> None:
    """Remove a dataset of the cache: it is renamed first, so that it is whole or gone.

    Raises:
        StorageError: it cannot be removed.
    """
    with locked_dataset(name, lambda _: None) as target:
        if target.exists():
            target.rename(target.with_name(f".{name}{_BESIDE}old-{os.getpid()}"))
        _sweep(target)


@contextmanager
def installed(target: Path) -> Iterator[Path]:
    """An empty folder that replaces ``target`` at the end, unless there is an error.

    Its permissions follow the umask, as a cache may be shared. The caller holds the lock of the
    dataset.
    """
    beside = target.with_name(f".{target.name}{_BESIDE}{secrets.token_hex(8)}")
    beside.mkdir()
    try:
        yield beside
        for path in (*sorted(beside.iterdir()), beside):
            sync_file(path)
        if target.exists():
            target.rename(target.with_name(f".{target.name}{_BESIDE}old-{os.getpid()}"))
        beside.rename(target)
        sync_file(target.parent)
        _sweep(target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _sweep(target: Path) -> None:
    """Remove what an interrupted process has left; no process uses it, as we hold the lock."""
    for left in target.parent.glob(f".{target.name}{_BESIDE}*"):
        shutil.rmtree(left, ignore_errors=True)
