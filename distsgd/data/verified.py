"""Which files have been hashed, so that none is hashed twice for nothing.

What a process has found of a file, it believes again, and so do the other processes of the run
that are told of it, for as long as the file is provably the same: same boot of the same machine,
device, inode, size, times of its content and of its inode, none of them younger than a clock can
tell apart when it was hashed. On another machine the file is hashed again.

What this cannot see: a write through a mapping that was there before, and a disk that later gives
other bytes for what has left the memory of the system.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from distsgd.data.folder_files import reader_inside, stat_inside

__all__ = ["Found", "Identity", "believe", "checksum", "found_before", "hashed", "identity_of"]

_SETTLED_NS = 2_000_000_000
"""Some file systems count in steps of two seconds: a change within one would not show."""


class Identity(NamedTuple):
    """What changes when a file does.

    Attributes:
        boot: of the machine.
        device: that the file is on.
        inode: its number there.
        size: bytes.
        mtime_ns: when its content was last changed.
        ctime_ns: when it was last changed in any way.
    """

    boot: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


Found = tuple[Identity, str]
"""A file, and the SHA-256 that it had."""

_known: dict[Identity, str] = {}


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # then nobody else's word is taken
        return f"process {os.getpid()} {time.time_ns()}"


def _identity(found: os.stat_result) -> Identity:
    return Identity(
        _boot(), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


def identity_of(path: Path) -> Identity:
    """The identity that a file has now.

    Raises:
        OSError: there is none.
    """
    return _identity(stat_inside(path))


def hashed(path: Path) -> Found:
    """Which file there is, and its SHA-256, read now.

    Raises:
        OSError: it cannot be read.
    """
    with reader_inside(path) as file:
        before, began = _identity(os.fstat(file.fileno())), time.time_ns()
        found = hashlib.file_digest(file, "sha256").hexdigest()
        after = _identity(os.fstat(file.fileno()))
    settled = began - max(before.mtime_ns, before.ctime_ns) > _SETTLED_NS
    if settled and before == after:
        _known[before] = found
    return before, found


def checksum(path: Path) -> str:
    """SHA-256 of a file, read now.

    Raises:
        OSError: it cannot be read.
    """
    return hashed(path)[1]


def found_before(identity: Identity) -> str | None:
    """The SHA-256 that a file was found to have, here or where we were told, if it still is so."""
    return _known.get(identity)


def believe(found: Iterable[Found]) -> None:
    """Take another process's word.

    Args:
        found: what it has found, of whichever files; of others than ours it says nothing.
    """
    _known.update(found)
