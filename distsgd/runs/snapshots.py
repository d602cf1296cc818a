"""Snapshots: a cache of the states that a run went through, in a folder beside its checkpoints.

A snapshot is a file of the format of a checkpoint, with its place in the journal, and residuals
beside it where there are any. Recomputing an update starts from the checkpoint or snapshot before
it; on the way new snapshots are written, and a training that thins out its checkpoints moves them
here. All of them may be removed at any time. So they need not survive a loss of power; and of two
processes that write or remove the same one, either may win.

Their bytes are bounded. Where there are too many, the one goes whose neighbours are closest to each
other, so that they stay spread evenly over the history.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from contextlib import suppress
from dataclasses import replace

from distsgd.core.optim import Residuals
from distsgd.data.folder_files import move_inside, names_inside, remove_inside, stat_inside
from distsgd.errors import RunError, StorageError
from distsgd.runs.checkpoint import (
    Model,
    checkpoint_path,
    checkpoint_versions,
    read_place,
    write_checkpoint,
)
from distsgd.runs.folder import RunFolder
from distsgd.runs.residual_file import write_residuals

__all__ = ["MOST_BYTES", "Snapshots"]

MOST_BYTES = 64 << 20
"""Of all snapshots of a run."""

_LEAST_SPACING = 32
"""Updates between two snapshots, at least."""

_NAME = re.compile(r"(?:step|residuals)-(\d{9,18})(?:\.npz|-[0-9a-f]{16}\.bin)", re.ASCII)


class Snapshots:
    """The snapshots of a run. No method raises an error: without a cache, all is only slower.

    Args:
        run: the run.
        most: bytes of all of them.
    """

    def __init__(self, run: RunFolder, most: int = MOST_BYTES) -> None:
        self.folder, self._checkpoints, self._most = run.snapshots, run.checkpoints, most
        self._sizes: dict[int, int] = {}
        self._whole: set[int] = set()  # versions that there is more of than residuals
        self._known: list[int] = []  # versions of snapshots and checkpoints
        self.look()

    @property
    def writable(self) -> bool:
        """Whether the run folder is this user's own, and can be written."""
        top = self.folder.parent
        try:
            own = top.stat().st_uid == os.geteuid()
        except OSError:
            return False
        here = self.folder if self.folder.is_dir() else top
        return own and os.access(top, os.W_OK | os.X_OK) and os.access(here, os.W_OK | os.X_OK)

    @property
    def versions(self) -> list[int]:
        """Of W that there are snapshots of, ascending, at the last look."""
        return sorted(self._whole)

    @property
    def bytes(self) -> int:
        """Of all of them, at the last look."""
        return sum(self._sizes.values())

    def look(self) -> None:
        """List what exists now."""
        sizes: dict[int, int] = {}
        self._whole = set()
        with suppress(OSError):
            for name in names_inside(self.folder, below=self.folder.parent):
                if match := _NAME.fullmatch(name):
                    with suppress(OSError):
                        size = stat_inside(self.folder / name, below=self.folder.parent).st_size
                        sizes[int(match[1])] = sizes.get(int(match[1]), 0) + size
                        if name.endswith(".npz"):
                            self._whole.add(int(match[1]))
        self._sizes = sizes
        checkpoints = list[int]()
        with suppress(RunError, StorageError):
            checkpoints = checkpoint_versions(self._checkpoints)
        self._known = sorted({*sizes, *checkpoints})

    def spacing(self, size: int, length: int) -> int:
        """Updates from one snapshot to the next; 0 for none at all.

        Args:
            size: bytes of one.
            length: updates of the run.
        """
        room = self._most // max(1, size)
        return max(_LEAST_SPACING, -(-length // room)) if room else 0

    def wants(self, version: int, spacing: int) -> bool:
        """Whether there is none near a version; says so once, as one is expected then."""
        place = bisect_right(self._known, version)
        if place and version - self._known[place - 1] < spacing:
            return False
        if place < len(self._known) and self._known[place] - version < spacing // 2:
            return False
        self._known.insert(place, version)
        return True

    def add(self, model: Model, residuals: Residuals, dtype: str) -> bool:
        """Write one; returns whether it worked.

        Args:
            model: the state, with its place.
            residuals: of the workers.
            dtype: of the run.
        """
        if not self.folder.parent.is_dir():
            return False
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            digest = None
            if residuals:
                digest = write_residuals(
                    self.folder, model.version, residuals, dtype, durable=False
                )
            write_checkpoint(self.folder, replace(model, residuals=digest), durable=False)
        except (OSError, RunError, StorageError):
            return False
        return True

    def remove(self, version: int) -> None:
        """Remove one that is of no use."""
        if not self.writable:
            return
        with suppress(OSError):
            for name in names_inside(self.folder, below=self.folder.parent):
                if (match := _NAME.fullmatch(name)) and int(match[1]) == version:
                    remove_inside(self.folder / name, below=self.folder.parent)
        self._sizes.pop(version, None)

    def thin_out(self) -> None:
        """Remove some until they are within the bound."""
        self.look()
        if self.bytes <= self._most or not self.writable:
            return
        known, total = list(self._known), self.bytes
        own = set(self._sizes)
        while total > self._most and own:
            gaps = {
                version: known[place + 1] - known[place - 1]
                for place, version in enumerate(known[1:-1], 1)
                if version in own
            }
            gone = min(gaps, key=lambda version: (gaps[version], version)) if gaps else min(own)
            total -= self._sizes[gone]
            known.remove(gone)
            own.discard(gone)
            self.remove(gone)

    def take_over(self, versions: set[int], *, residuals: bool) -> None:
        """Move checkpoints here, if all later updates can be recomputed from them.

        Args:
            versions: of checkpoints that are no longer needed where they are.
            residuals: whether they are of use only with residuals.
        """
        below, moved = self.folder.parent, False
        for version in sorted(versions):
            path = checkpoint_path(self._checkpoints, version)
            try:
                place = read_place(path)
                if place is None or not place.usable:
                    continue
                if stat_inside(path, below=below).st_size > self._most:
                    continue
                if residuals and version not in self._sizes:
                    continue
                self.folder.mkdir(mode=0o700, exist_ok=True)
                move_inside(path, checkpoint_path(self.folder, version), below=below)
                moved = True
            except (OSError, RunError, StorageError):
                continue
        if moved:
            self.thin_out()

    def take_over_residuals(self, needed: set[int]) -> None:
        """Move the residuals of checkpoints here, but not those of some versions."""
        below, moved = self.folder.parent, False
        with suppress(OSError):
            for name in names_inside(self._checkpoints, below=below):
                match = _NAME.fullmatch(name)
                if match is None or name.endswith(".npz") or int(match[1]) in needed:
                    continue
                self.folder.mkdir(mode=0o700, exist_ok=True)
                move_inside(self._checkpoints / name, self.folder / name, below=below)
                moved = True
        if moved:
            self.thin_out()
