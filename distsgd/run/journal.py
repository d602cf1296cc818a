"""The journal: every applied update in order, chained so that no record can be altered.

A line is a JSON object. Each carries a digest of itself and of the digest before it; the first
digest is made from the settings of the run, so that a journal belongs to its run. A record has:

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
    n   number of workers, at least 1
    d   digest
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distsgd.core.messages import Applied, Lease
from distsgd.errors import JournalError, storage_error
from distsgd.run.config import TrainConfig
from distsgd.run.line_file import LineFile

__all__ = ["JOURNAL", "JournalWriter", "Record", "Resumed", "read_journal", "repair_journal"]

JOURNAL = "journal.jsonl"


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
        workers: how many there are from there on, at least 1.
    """

    version: int
    epochs: int
    workers: int


Entry = Record | Resumed


def _first_digest(config: TrainConfig, dataset_digest: str) -> str:
    text = json.dumps([asdict(config), dataset_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _chained(before: str, content: dict[str, Any]) -> str:
    text = before + json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class JournalWriter(LineFile):
    """Appends updates to the journal of a run.

    Args:
        folder: the run folder.
        config: its settings, as in its config.json.
        dataset_digest: digest of the dataset's manifest.
        digest: of the last line, if there are some already.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, dataset_digest: str, digest: str | None = None
    ) -> None:
        super().__init__(folder / JOURNAL)
        self._digest = digest or _first_digest(config, dataset_digest)

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
        self._append({"r": entry.version, "e": entry.epochs, "n": entry.workers})

    def _append(self, content: dict[str, Any]) -> None:
        self._digest = _chained(self._digest, content)
        self.write({**content, "d": self._digest})


def read_journal(folder: Path, config: TrainConfig, dataset_digest: str) -> Iterator[Entry]:
    """The lines of a run's journal, each checked against the chain.

    Args:
        folder: the run folder.
        config: its settings, as in its config.json.
        dataset_digest: digest of the dataset's manifest.

    Raises:
        JournalError: names the first line that does not hold.
    """
    try:
        content = (folder / JOURNAL).read_bytes()
    except OSError as error:
        raise JournalError(0, f"{folder / JOURNAL} cannot be read: {error}") from None
    for entry, _, _ in _checked(content, _first_digest(config, dataset_digest)):
        yield entry


def repair_journal(
    folder: Path, config: TrainConfig, dataset_digest: str
) -> tuple[list[Entry], str | None]:
    """The lines of a journal whose run was killed; a last line that was cut short is removed.

    Returns:
        the lines, and the digest of the last of them, if there is one.

    Raises:
        JournalError: a line that was not cut short does not hold.
        StorageError: the file cannot be written.
    """
    path, entries = folder / JOURNAL, list[Entry]()
    digest: str | None = None
    end = 0
    try:
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for entry, found, after in _checked(whole, _first_digest(config, dataset_digest)):
            entries.append(entry)
            digest, end = found, after
        if end < len(content):
            os.truncate(path, end)
    except OSError as error:
        raise storage_error(error, path) from None
    return entries, digest


def _checked(content: bytes, digest: str) -> Iterator[tuple[Entry, str, int]]:
    """Each line, its digest, and where it ends."""
    end = 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        end += len(line)
        try:
            fields = json.loads(line)
            found = fields.pop("d")
            digest = _chained(digest, fields)
            entry = _parse(fields)
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ):
            raise JournalError(number, "it is not a record") from None
        if found != digest:
            raise JournalError(number, "its digest does not follow from the records before it")
        yield entry, digest, end


def _parse(content: dict[str, Any]) -> Entry:
    if "r" in content:
        return Resumed(int(content["r"]), int(content["e"]), int(content["n"]))
    contributions = tuple((int(worker), Lease(*map(int, lease))) for worker, *lease in content["c"])
    requeued = tuple((int(p), int(s), int(f), int(e)) for p, s, f, e in content["q"])
    return Record(int(content["v"]), int(content["s"]), contributions, requeued)
