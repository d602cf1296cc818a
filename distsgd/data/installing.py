"""A dataset's folder appears in one rename, after all of its checks; until then it is beside."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distsgd.data.atomic import sync_folder, sync_tree

__all__ = ["installed", "sweep"]

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
