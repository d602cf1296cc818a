"""The shards that a node has fetched: each once for all of its processes, within a limit."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from distsgd.data.folder_files import SMALL, open_inside, read_inside, replace_inside
from distsgd.data.manifest import Shard
from distsgd.data.system import pause
from distsgd.data.verified import Identity, checksum, identity_of, known_checksum, trust_checksums
from distsgd.errors import DatasetError, machine_trouble, storage_error
from distsgd.spelling import spelling

__all__ = ["Held", "NodeCache"]

_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.01

Fetch = Callable[[Shard, Path], None]
"""Fetches a shard to a path."""


class Held:
    """A shard in the cache, which stays there until it is released.

    Attributes:
        path: path of the file.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor

    def release(self) -> None:
        """Allow its removal; what is mapped of it stays readable. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class NodeCache:
    """Shards of one remote dataset on this node, beside those of others.

    Several processes may use it at once. A shard is fetched under a lock of its own, into a file
    beside, and appears in one rename once its SHA-256 has been checked. A process that uses one
    holds a shared lock on it (`flock`), so that others do not remove it to free space; the system
    releases the locks of a dead process.

    Args:
        folder: folder of this dataset, in the folder of all remote ones.
        limit: bytes that all of them may take; None for no limit.
        fetch: fetches a shard.

    Attributes:
        upcoming: when a file will be needed: smaller is sooner.
    """

    def __init__(self, folder: Path, limit: int | None, fetch: Fetch) -> None:
        self._folder, self._limit, self._fetch = folder, limit, fetch
        self._all = folder.parent
        self._locks = self._all / ".locks"
        self.upcoming: dict[str, int] = {}

    def need(self, entries: Sequence[str]) -> None:
        """Announce the order in which files will be needed; the last ones are removed first."""
        order: dict[str, int] = {}
        for place, file in enumerate(entries):
            order.setdefault(file, place)
        self.upcoming = order

    def hold(self, entry: Shard, make_room: Callable[[], bool] = lambda: False) -> Held:
        """A shard, which is fetched if it is missing.

        Args:
            entry: its entry in the manifest.
            make_room: releases another shard of this process, if it has one, and returns whether.

        Raises:
            DatasetError: the limit is too small for what is in use at once.
            DistsgdError: it cannot be fetched; see `Fetcher.fetch`.
        """
        until = time.monotonic() + _WAIT_SECONDS
        while True:
            held = self._held(entry)
            if held is not None:
                return held
            if not self._fetched(entry, soon=True) and not make_room():
                if time.monotonic() > until:
                    raise DatasetError(
                        f"{spelling().setting('cache_size')} is too small: all {self._limit} "
                        f"bytes of {self._all} are in use",
                        f"Raise it, or lower {spelling().setting('shuffle_window')}",
                    )
                pause(_POLL_SECONDS)

    def prefetch(self, entry: Shard, placed: Callable[[], None] = lambda: None) -> bool:
        """Fetch a shard that is not needed yet, if there is room; returns whether it is there.

        Args:
            entry: its entry in the manifest.
            placed: called once its room is reserved, before it is fetched.
        """
        if (self._folder / entry.file).exists():
            return True
        return self._fetched(entry, soon=False, placed=placed)

    def _held(self, entry: Shard) -> Held | None:
        """The shard, locked, if it is there and intact."""
        path = self._folder / entry.file
        try:
            descriptor = open_inside(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise machine_trouble(error, path) or storage_error(error, path) from None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        here = os.fstat(descriptor)
        if here.st_nlink and here.st_size == entry.size and self._sound(path, entry):
            return Held(path, descriptor)
        os.close(descriptor)
        if here.st_nlink:  # not removed since, so it is damaged, as after a power failure
            path.unlink(missing_ok=True)
        return None

    def _sound(self, path: Path, entry: Shard) -> bool:
        """Whether it has the right SHA-256, by the note of who fetched it, or hashed now."""
        self._trust_note(path, entry)
        try:
            return (known_checksum(identity_of(path)) or checksum(path)) == entry.sha256
        except FileNotFoundError:
            return False

    def _fetched(
        self, entry: Shard, *, soon: bool, placed: Callable[[], None] = lambda: None
    ) -> bool:
        """Fetch it unless another process has; returns False if there is no room."""
        path = self._folder / entry.file
        part = _part_of(path)
        self._locks.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(self._lock_of(path), wait=soon) as ours:
            if not ours or path.exists():  # another process is fetching it, or has
                return True
            if not self._reserved(entry, part, soon=soon):
                return False
            placed()
            try:
                self._fetch(entry, part)
                part.rename(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            with suppress(OSError):  # without a note it is hashed when it is used
                note = [*identity_of(path), entry.sha256]
                replace_inside(_note_of(path), json.dumps(note).encode())
                self._trust_note(path, entry)
            return True

    def _trust_note(self, path: Path, entry: Shard) -> None:
        """Trust the note of the process that has fetched it, if the file is still the same."""
        with suppress(OSError, ValueError, TypeError):
            *identity, sha256 = json.loads(read_inside(_note_of(path), most=SMALL))
            if sha256 == entry.sha256 and Identity(*identity) == identity_of(path):
                trust_checksums([(Identity(*identity), sha256)])

    def _reserved(self, entry: Shard, part: Path, *, soon: bool) -> bool:
        """Reserve room for a shard; removes shards that are needed later, or not at all."""
        try:
            with _locked(self._locks / "room.lock"):
                part.unlink(missing_ok=True)  # left by a process that has died
                if self._limit is not None and not self._make_room(entry, soon=soon):
                    return False
                file = open_inside(part, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                try:
                    os.posix_fallocate(file, 0, entry.size)
                finally:
                    os.close(file)
                return True
        except OSError as error:
            part.unlink(missing_ok=True)
            raise storage_error(error, part) from None

    def _make_room(self, entry: Shard, *, soon: bool) -> bool:
        assert self._limit is not None
        # List parts first, so that one that becomes a shard in the meantime is not overlooked, and
        # count it once: fetching ahead ends when there seems to be no room.
        parts, sizes = _sizes(self._all, ".part"), _sizes(self._all, ".arrow")
        for path in sizes:
            parts.pop(_part_of(path), None)
        room = self._limit - sum(sizes.values()) - sum(parts.values())
        if room >= entry.size:
            return True
        for path, size in parts.items():
            if self._abandoned(path):
                with suppress(FileNotFoundError):  # it has become a shard by now
                    path.unlink()
                    room += size
        place = -1.0 if soon else float(self.upcoming.get(entry.file, 0))
        for path in sorted(sizes, key=lambda path: -self._when(path)):
            if room >= entry.size:
                break
            # Keep what is needed sooner than this one.
            if self._when(path) > place and _removed(path):
                room += sizes[path]
        return room >= entry.size

    def _abandoned(self, part: Path) -> bool:
        """Whether the process that was fetching to it has died."""
        name = part.name.removeprefix(".").removesuffix(".part")
        with _locked(self._lock_of(part.with_name(name)), wait=False) as ours:
            return ours

    def _lock_of(self, path: Path) -> Path:
        return self._locks / f"{path.parent.name}-{path.name}.lock"

    def _when(self, path: Path) -> float:
        ours = path.parent == self._folder
        return self.upcoming.get(path.name, float("inf")) if ours else float("inf")


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock; yields whether we do.

    The system wakes a waiting process. A lock library would poll, which slows training down.
    """
    try:
        descriptor = open_inside(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise storage_error(error, path) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _sizes(folder: Path, ending: str) -> dict[Path, int]:
    """Files of all datasets with an ending, and their bytes, oldest first."""
    found: list[tuple[float, Path, int]] = []
    with os.scandir(folder) as datasets:
        for dataset in datasets:
            if not dataset.is_dir(follow_symlinks=False):
                continue
            with os.scandir(dataset) as files:
                for file in files:
                    if file.name.endswith(ending):
                        with suppress(FileNotFoundError):
                            is_now = file.stat(follow_symlinks=False)
                            found.append((is_now.st_mtime, Path(file.path), is_now.st_size))
    return {path: size for _, path, size in sorted(found)}


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _note_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.found")


def _removed(path: Path) -> bool:
    """Remove a shard unless a process holds it; returns whether it was removed."""
    try:
        descriptor = open_inside(path)
    except OSError:  # it is gone, or not a plain file
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        _note_of(path).unlink(missing_ok=True)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
