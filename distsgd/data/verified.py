"""Checksums of files that have been hashed already, so that no file is hashed twice in vain.

A process trusts the checksums that it has computed, and those that another process of the run
passes on, as long as the file is provably the same: same boot of the same machine, device, inode,
size, and times of its content and inode, which must be older than the resolution of the clock when
it was hashed. On another machine the file is hashed again.

Two changes go unnoticed: a write through an older mapping, and a disk that returns other bytes
once the file has left the page cache.
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

__all__ = [
    "FileChecksum",
    "Identity",
    "checksum",
    "hash_file",
    "identity_of",
    "known_checksum",
    "trust_checksums",
]

_SETTLED_NS = 2_000_000_000
"""Some file systems keep times in steps of two seconds: a change within one would not show."""


class Identity(NamedTuple):
    """What changes when a file does.

    Attributes:
        boot: random identifier of the boot of the machine.
        device: device of the file.
        inode: number of the file on the device.
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


FileChecksum = tuple[Identity, str]
"""A file and its SHA-256."""

_known: dict[Identity, str] = {}


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # then checksums of other processes do not count
        return f"process {os.getpid()} {time.time_ns()}"


def _identity(found: os.stat_result) -> Identity:
    return Identity(
        _boot(), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


def identity_of(path: Path) -> Identity:
    """The current identity of a file.

    Raises:
        OSError: there is none.
    """
    return _identity(stat_inside(path))


def hash_file(path: Path) -> FileChecksum:
    """Hash a file; returns its identity and SHA-256.

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
    """Hash a file; returns its SHA-256.

    Raises:
        OSError: it cannot be read.
    """
    return hash_file(path)[1]


def known_checksum(identity: Identity) -> str | None:
    """The SHA-256 of a file that has been hashed here or by a trusted process; None if unknown."""
    return _known.get(identity)


def trust_checksums(found: Iterable[FileChecksum]) -> None:
    """Trust checksums that another process has computed; they count for the same files only."""
    _known.update(found)
