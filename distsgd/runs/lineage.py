"""The runs that a run was forked from: its history is theirs up to the fork, and then its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distsgd.errors import RunError, StorageError
from distsgd.runs.folder import RunFolder, handle, list_runs
from distsgd.runs.journal import has_mark, recorded_first
from distsgd.runs.opened_run import OpenedRun, open_folder
from distsgd.runs.parent import COPY, Parent, parent_of

__all__ = ["Segment", "find_parent", "forks_of", "lineage"]

_MOST = 1000
"""Forks of forks."""


@dataclass(frozen=True)
class Segment:
    """A part of a history, which one run folder has recorded.

    Attributes:
        run: the run.
        last: the update at which the next part begins; None for the last part.
    """

    run: OpenedRun
    last: int | None = None


def lineage(run: OpenedRun) -> list[Segment]:
    """The parts of the history of a run, oldest first.

    Raises:
        RunError: a run that it was forked from is gone, or is no longer what it was.
    """
    found, seen = [Segment(run)], {run.folder.path.resolve()}
    while (parent := found[0].run.parent) is not None:
        folder = find_parent(found[0].run.folder, parent)
        if folder.path in seen or len(found) > _MOST:
            raise RunError(
                f"{run.folder.path} cannot be its own parent: the entry `parent` of config.json, "
                "there or in one of its parents, is wrong",
                "Take the run from where you got it once more",
            )
        seen.add(folder.path)
        found.insert(0, Segment(open_folder(folder, run.dataset), parent.update))
    return found


def find_parent(fork: RunFolder, parent: Parent) -> RunFolder:
    """The run that another was forked from: its copy, where it was, or where it has been moved to.

    It is known by the time at which it was made, and the digest of the record where the fork left
    it.

    Args:
        fork: the other.
        parent: what that recorded of it.

    Raises:
        RunError: it is gone, or its journal no longer has that record.
    """
    for folder in _candidates(fork, parent):
        if _is_it(folder, parent):
            return folder
    there = (parent.path / "config.json").is_file()
    raise RunError(
        f"{parent.path}, which {handle(fork)} was forked from at update {parent.update}, is "
        + ("no longer what it was: its journal lacks that record" if there else "gone"),
        f"Put it back there or into {fork.path.parent}; without it `distsgd audit --own`, "
        "`replay --own`, `resume`, `evaluate` and `predict` still work",
    )


def _candidates(fork: RunFolder, parent: Parent) -> Iterator[RunFolder]:
    """Where it may be, the likeliest place first."""
    for path in (fork.path / COPY, parent.path, fork.path.parent / parent.name):
        if (path / "config.json").is_file():
            yield RunFolder(path.resolve())
    yield from list_runs()


def _is_it(run: RunFolder, parent: Parent) -> bool:
    with suppress(RunError, StorageError):
        config = run.read("config.json")
        if str(config.get("created", "")) != parent.created:
            return False
        return has_mark(run.path, parent.mark, recorded_first(run.path, config))
    return False


def forks_of(run: RunFolder) -> list[RunFolder]:
    """The runs that need this one for their history: its forks that have no copy of it."""
    found = []
    for other in list_runs():
        with suppress(RunError, StorageError):
            parent = parent_of(other)
            if parent is None or (other.path / COPY).is_dir():
                continue
            if _same(parent.path, run.path) and _is_it(run, parent):
                found.append(other)
    return found


def _same(recorded: Path, path: Path) -> bool:
    """Whether a recorded path is of a run: it is there, or it is gone from where it was."""
    return recorded == path or not recorded.exists()
