"""Files that are either whole or absent: write beside, fsync, rename.

A dataset's folder appears in one rename, after all of its checks; until then it is beside.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distsgd.data.folder_files import replace_inside

__all__ = ["installed", "replace_file", "sweep", "sync_file", "sync_folder", "sync_tree"]


def replace_file(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Put ``content`` at ``path``; never a half-written file.

    A symbolic link stays one: its target is replaced. A device, or a pipe that is being read, is
    written to: a file in the place of /dev/null would break every other program.

    Args:
        path: the file.
        content: all of it.
        shared: made for others too: the umask says who may read it. Else the user alone may.

    Raises:
        OSError: the old file, if there was one, is untouched.
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
    """Make the content of a file durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable."""
    sync_file(folder)


def sync_tree(folder: Path) -> None:
    """Make the files of a folder, and its entries, durable."""
    for path in sorted(folder.iterdir()):
        sync_file(path)
    sync_folder(folder)


_BESIDE = "~"
"""Follows the name of the dataset; names have none, so that no other name begins with both."""


@contextmanager
def installed(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target`` that takes its place at the end, if there is no error.

    The umask says who may read it: a cache may be shared.

    Whoever calls holds the lock of the dataset.
    """
    beside = target.with_name(f".{target.name}{_BESIDE}{secrets.token_hex(8)}")
    beside.mkdir()
    try:
        yield beside
        sync_tree(beside)
        if target.exists():
            target.rename(target.with_name(f".{target.name}{_BESIDE}old-{os.getpid()}"))
        beside.rename(target)
        sync_folder(target.parent)
        sweep(target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def sweep(target: Path) -> None:
    """Remove what an interrupted process left; we hold the lock, so nobody is using it."""
    for left in target.parent.glob(f".{target.name}{_BESIDE}*"):
        shutil.rmtree(left, ignore_errors=True)
