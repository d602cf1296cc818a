"""A run as its folder records it: journal, checkpoints, settings; and its dataset, if found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.core.plan import Plan
from distsgd.errors import DistsgdError, RunError
from distsgd.proof.timeline import Timeline
from distsgd.runs import (
    Model,
    Record,
    RunFolder,
    checkpoint_path,
    checkpoint_versions,
    find_run,
    handle,
    read_if_kept,
    recorded_journal,
)
from distsgd.runs.folder import kernels_of
from distsgd.runs.journal import Journal
from distsgd.runs.lineage import lineage
from distsgd.runs.opened_run import OpenedRun, dataset_of_run

__all__ = ["RecordedRun", "Updates", "slots_of"]


@dataclass(frozen=True, eq=False)
class Updates:
    """The updates of a journal, each in a few bytes.

    Attributes:
        begin: the update that its first line comes after.
        keys: of each update a digest of what decides its arithmetic: step, pieces, versions read
            and their order, but not the workers that computed them.
        prints: of each update the fingerprint of W after it; 0 where there is none.
        printed: whether there is one.
    """

    begin: int
    keys: NDArray[np.int64]
    prints: NDArray[np.uint64]
    printed: NDArray[np.bool_]

    @property
    def last(self) -> int:
        """The last update."""
        return self.begin + len(self.keys)

    def fingerprint(self, update: int) -> int | None:
        """The fingerprint of W after an update, if it is recorded."""
        place = update - self.begin - 1
        if not 0 <= place < len(self.keys) or not self.printed[place]:
            return None
        return int(self.prints[place])


def _key(record: Record) -> int:
    """See `Updates.keys`. Hashes of numbers are the same in every process."""
    return hash((record.step, slots_of(record), record.requeued))


def slots_of(record: Record) -> tuple[tuple[int, int, int, int, int], ...]:
    """The slots, or replicas, of an update in the order in which they are added.

    How many pieces they were leased in makes no difference to W.

    Returns:
        of each its step, its number, the version that it read, steps and replicas.
    """
    return tuple(
        (lease.step, slot, lease.version, lease.steps, lease.replicas)
        for _, lease in record.contributions
        for slot in range(lease.first, lease.last)
    )


def _print_of(record: Record) -> int | None:
    return record.fingerprint


@dataclass(eq=False)
class RecordedRun:
    """One of the runs that are compared.

    Args:
        folder: its folder.

    Attributes:
        config: its config.json.
        settings: those it began with.
        problem: why its dataset cannot be opened; "" if it can.
    """

    folder: RunFolder
    config: dict[str, Any] = field(init=False)
    problem: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.config = self.folder.read("config.json")
        self.settings = self.folder.settings()

    @classmethod
    def find(cls, run: str | Path) -> RecordedRun:
        """A run by its path or name.

        Raises:
            RunError: there is none, or its config.json is damaged.
        """
        return cls(find_run(run))

    @property
    def name(self) -> str:
        """By which commands find it."""
        return handle(self.folder)

    @cached_property
    def opened(self) -> OpenedRun | None:
        """The run with its dataset; None if that cannot be opened, see ``problem``."""
        try:
            opened = OpenedRun(self.folder, self.settings, dataset_of_run(self.folder))
            opened.dataset.train.verify()
            return opened
        except DistsgdError as error:
            self.problem = error.problem
            return None

    @cached_property
    def timeline(self) -> Timeline | None:
        """Its history, recomputed; None without its dataset."""
        return None if self.opened is None else Timeline(self.opened, compares=False)

    @cached_property
    def running(self) -> bool:
        """Whether it was training when this was first asked."""
        return self.folder.status() == "running"

    @property
    def kernels(self) -> list[str]:
        """The BLAS kernels that computed it."""
        with suppress(KeyError, RunError):
            return kernels_of(self.folder)
        return []

    @cached_property
    def chain(self) -> list[tuple[RunFolder, int | None]]:
        """The folders that its history lies in, oldest first, each with its last update."""
        if self.opened is None:
            return [(self.folder, None)]
        return [(part.run.folder, part.last) for part in lineage(self.opened)]

    def _journals(self) -> Iterator[tuple[Journal, RunFolder, int | None]]:
        for folder, last in self.chain:
            yield recorded_journal(folder.path, folder.read("config.json")), folder, last

    def _records(self) -> Iterator[Record]:
        """The records of its journal, and before them those of the runs it was forked from."""
        for journal, _, last in self._journals():
            for entry, _ in journal.entries():
                if isinstance(entry, Record):
                    if last is not None and entry.version > last:
                        break
                    yield entry

    @cached_property
    def updates(self) -> Updates:
        """All updates that its journal has.

        Raises:
            JournalError: names the first invalid line.
        """
        keys: list[int] = []
        prints: list[int | None] = []
        begin: int | None = None
        for record in self._records():
            if begin is None:
                begin = record.version - 1
            keys.append(_key(record))
            prints.append(_print_of(record))
        if begin is None:
            begin = self.versions[-1] if self.versions else 0
        return Updates(
            begin,
            np.array(keys, np.int64),
            np.array([value or 0 for value in prints], np.uint64),
            np.array([value is not None for value in prints], np.bool_),
        )

    def updates_of(self, slots: set[tuple[int, int]], plan: Plan) -> dict[tuple[int, int], int]:
        """The updates that slots, as (step, slot), were part of.

        Raises:
            JournalError: the journal is invalid.
        """
        found: dict[tuple[int, int], int] = {}
        steps = {step for step, _ in slots}
        for record in self._records():
            for _, lease in record.contributions:
                if steps.isdisjoint(range(lease.step, lease.step + lease.steps)):
                    continue
                for step, first, last in lease.slots(plan):
                    for slot in range(first, last):
                        if (step, slot) in slots:
                            found.setdefault((step, slot), record.version)
            if len(found) == len(slots):
                break
        return found

    @cached_property
    def versions(self) -> list[int]:
        """The updates after which there are checkpoints, ascending, those of its parents too."""
        found: set[int] = set()
        for folder, last in self.chain:
            found.update(
                version
                for version in checkpoint_versions(folder.checkpoints)
                if last is None or version <= last
            )
        return sorted(found)

    def checkpoint(self, version: int) -> Model | None:
        """The checkpoint of an update; None if it is damaged or was removed meanwhile."""
        for folder, last in reversed(self.chain):
            if last is not None and version > last:
                continue
            path = checkpoint_path(folder.checkpoints, version)
            if path.exists():
                with suppress(RunError):
                    return read_if_kept(path)
        return None

    def weights(self, version: int) -> Floats | None:
        """Flat padded W of a checkpoint; None if there is none."""
        model = self.checkpoint(version)
        return None if model is None else model.padded()

    @cached_property
    def model(self) -> Model:
        """Any of its checkpoints, for the shape and the names of the entries of W.

        Raises:
            RunError: none can be read.
        """
        for version in self.versions:
            if (found := self.checkpoint(version)) is not None:
                return found
        raise RunError(f"{self.folder.path} has no checkpoint that can be read", "Train again")
