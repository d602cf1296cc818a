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
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distsgd.core.messages import Applied, Lease
from distsgd.errors import JournalError
from distsgd.run.config import TrainConfig
from distsgd.run.line_file import LineFile

__all__ = ["JOURNAL", "JournalWriter", "Record", "read_journal"]

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


def _first_digest(config: TrainConfig, dataset_digest: str) -> str:
    text = json.dumps([asdict(config), dataset_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _chained(before: str, content: dict[str, Any]) -> str:
    text = before + json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class JournalWriter(LineFile):
    """Appends updates to the journal of a new run.

    Args:
        folder: the run folder.
        config: its settings.
        dataset_digest: digest of the dataset's manifest.
    """

    def __init__(self, folder: Path, config: TrainConfig, dataset_digest: str) -> None:
        super().__init__(folder / JOURNAL)
        self._digest = _first_digest(config, dataset_digest)

    def add(self, update: Applied) -> None:
        """Append one update.

        Raises:
            StorageError: the disk is full.
        """
        content = {
            "v": update.version,
            "s": update.step,
            "c": [_contribution(worker, lease) for worker, lease in update.contributions],
            "q": [list(piece) for piece in update.requeued],
        }
        self._digest = _chained(self._digest, content)
        self.write({**content, "d": self._digest})


def _contribution(worker: int, lease: Lease) -> list[int]:
    return [worker, *lease]


def read_journal(folder: Path, config: TrainConfig, dataset_digest: str) -> Iterator[Record]:
    """The records of a run, each checked against the chain.

    Raises:
        JournalError: names the first line that does not hold.
    """
    path = folder / JOURNAL
    digest = _first_digest(config, dataset_digest)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise JournalError(0, f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            found = content.pop("d")
            digest = _chained(digest, content)
            record = _parse(content)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise JournalError(number, "it is not a record") from None
        if found != digest:
            raise JournalError(number, "its digest does not follow from the records before it")
        yield record


def _parse(content: dict[str, Any]) -> Record:
    contributions = tuple((int(worker), Lease(*map(int, lease))) for worker, *lease in content["c"])
    requeued = tuple((int(p), int(s), int(f), int(e)) for p, s, f, e in content["q"])
    return Record(int(content["v"]), int(content["s"]), contributions, requeued)
