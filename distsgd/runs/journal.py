"""The journal: every applied update in order, chained so that damage is found.

A line is a JSON object. Each carries a digest of itself and of the digest before it; the first
digest is made from the settings of the run, so that a journal belongs to its run. The chain has no
key: it finds what a disk, a program or a mix-up has changed, and not what somebody has forged who
computed all later digests anew. The digest of the last line, the head, stands for all lines before
it: if it was kept where the forger cannot write, that is found too. A record has:

    v   version of W after the update
    s   step of the plan that its learning rate belongs to
    c   contributions in the order in which they were added, each
        [worker, step, first slot, one past the last, version read, steps, shares, serial]
    q   pieces put off to a later update, each
        [place in the reduction tree, step, first slot, one past the last]
    d   digest

Where a run was gone on with after an interruption, there is a line instead that has

    r   version of W from which it went on
    e   epochs asked for from there on
    n   worker processes from there on
    s   servers from there on
    h   channel from there on
    d   digest

Where a fleet was given another number of workers while it trained, there is a line that has

    w   worker processes from there on
    d   digest

A journal whose beginning was dropped (the setting `journal`) begins with a line that has

    o   bytes of the lines that were dropped
    l   how many they were
    d   digest of the last of them
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distsgd.core.messages import Applied, Lease
from distsgd.data.folder_files import reader_inside, replace_inside
from distsgd.errors import storage_error
from distsgd.runs.line_file import LineFile

__all__ = [
    "DIGEST_LENGTH",
    "JOURNAL",
    "Entry",
    "JournalWriter",
    "Mark",
    "Record",
    "Resized",
    "Resumed",
    "chained",
    "first_digest",
]

JOURNAL = "journal.jsonl"

DIGEST_LENGTH = 32
"""Hexadecimal digits of the digest of a line."""


@dataclass(frozen=True)
class Record:
    """One update.

    Attributes:
        version: version of W after it.
        step: step of the plan that its learning rate belongs to.
        contributions: worker and lease of each piece, in the order in which they were added.
        requeued: pieces put off to a later update, as in `distsgd.core.messages.Applied`.
    """

    version: int
    step: int
    contributions: tuple[tuple[int, Lease], ...]
    requeued: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class Resumed:
    """The run was gone on with.

    Attributes:
        version: version of W from which it went on.
        epochs: epochs asked for from there on.
        workers: worker processes from there on; 0 for one process without Ray.
        servers: parameter servers from there on.
        channel: from there on.
    """

    version: int
    epochs: int
    workers: int
    servers: int
    channel: str


@dataclass(frozen=True)
class Resized:
    """The fleet was given another number of workers while it trained.

    Attributes:
        workers: worker processes from there on.
    """

    workers: int


@dataclass(frozen=True)
class Mark:
    """A place between two lines of a journal.

    Attributes:
        digest: of the line before; the first digest, if there is none.
        offset: bytes of all lines before, also of those that have been dropped since.
        lines: how many they are.
    """

    digest: str
    offset: int = 0
    lines: int = 0


Entry = Record | Resumed | Resized


def first_digest(settings: Mapping[str, Any], dataset_digest: str) -> str:
    """The digest before the first line.

    Args:
        settings: as they are in the run's config.json, and no others: a later version may have
            more of them.
        dataset_digest: digest of the dataset's manifest.
    """
    text = json.dumps([dict(settings), dataset_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def chained(before: str, content: dict[str, Any]) -> str:
    """The digest of a line, from that of the line before and its content."""
    text = before + json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


class JournalWriter(LineFile):
    """Appends updates to the journal of a run.

    Args:
        folder: the run folder.
        end: where its journal ends; a line that was cut short after it is removed.
    """

    def __init__(self, folder: Path, end: Mark) -> None:
        super().__init__(folder / JOURNAL)
        self._digest, self._lines = end.digest, end.lines
        self._moved = end.offset - self._size  # from a place in the file to one in the journal

    @property
    def head(self) -> str:
        """Digest of the last line."""
        return self._digest

    def add(self, update: Applied) -> None:
        """Append one update.

        Raises:
            StorageError: the disk is full.
        """
        self._append({
            "v": update.version,
            "s": update.step,
            "c": [[worker, *lease] for worker, lease in update.contributions],
            "q": update.requeued,
        })  # fmt: skip

    def resumed(self, entry: Resumed) -> None:
        """Append that the run is gone on with.

        Raises:
            StorageError: the disk is full.
        """
        self._append({
            "r": entry.version, "e": entry.epochs, "n": entry.workers, "s": entry.servers,
            "h": entry.channel,
        })  # fmt: skip

    def resized(self, entry: Resized) -> None:
        """Append that the fleet has another number of workers.

        Raises:
            StorageError: the disk is full.
        """
        self._append({"w": entry.workers})

    def mark(self) -> Mark:
        """Where the journal ends now; everything is handed to the disk.

        Raises:
            StorageError: the disk is full.
        """
        self.sync()
        return Mark(self._digest, self._size + self._moved, self._lines)

    def drop_before(self, mark: Mark) -> None:
        """Drop all lines before a mark, whole or not at all.

        Raises:
            StorageError: the disk is full; the journal is as it was.
        """
        self.sync()
        line = json.dumps({"o": mark.offset, "l": mark.lines, "d": mark.digest}) + "\n"
        try:
            with reader_inside(self.path) as file:
                file.seek(mark.offset - self._moved)
                replace_inside(self.path, line.encode() + file.read())
        except OSError as error:
            raise storage_error(error, self.path) from None
        self._moved = mark.offset - len(line)
        self.reopen()

    def _append(self, content: dict[str, Any]) -> None:
        self._digest = chained(self._digest, content)
        self._lines += 1
        self.write({**content, "d": self._digest})
