"""Remove run folders, and nothing else."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from distsgd.errors import RunError, StorageError, storage_error
from distsgd.runs.folder import RunFolder, handle, runs_home
from distsgd.runs.lineage import forks_of
from distsgd.runs.parent import COPY

__all__ = ["check_removable", "check_unneeded", "remove_run"]

_FILES = re.compile(
    r"(config|report|kernels|workers|tags|chaos)\.json|(journal|metrics|chaos|events)\.jsonl"
    r"|\.running|\..*\.tmp"
)
"""Files of a run folder; see `distsgd.runs.folder`."""

_FOLDERS = {"checkpoints", "snapshots"}
_CHECKPOINTS = re.compile(r"step-\d+\.npz|residuals-.*\.bin|\..*\.tmp")


def check_removable(run: RunFolder) -> int:
    """The bytes of a run folder, which can be removed.

    Raises:
        RunError: the run is training, its config.json is damaged, or the folder has something that
            is not of a run.
        StorageError: it cannot be read.
    """
    run.read("config.json")
    if run.status() == "running":
        raise RunError(f"{run.path} is running", "Stop it first")
    size = 0
    try:
        for path, expected in _content(run):
            if not expected:
                raise RunError(
                    f"{run.path} has something that is not of a run: {path.relative_to(run.path)}",
                    "Move it elsewhere first, or remove the folder yourself",
                )
            size += path.lstat().st_size
    except OSError as error:
        raise storage_error(error, run.path) from None
    return size


def check_unneeded(runs: Sequence[RunFolder]) -> None:
    """See that no other run needs these for its history.

    Args:
        runs: that are to be removed, together.

    Raises:
        RunError: a fork does that is not removed with them, and has no copy of its history.
    """
    gone = {run.path for run in runs}
    for run in runs:
        left = [fork for fork in forks_of(run) if fork.path not in gone]
        if left:
            names = ", ".join(handle(fork) for fork in left[:_SHOWN])
            more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
            raise RunError(
                f"{run.path} is the history of {names}{more}, forked from it without a copy",
                "Remove the forks with it, or give --even-if-forked: they lose their history",
            )


_SHOWN = 3


def _content(run: RunFolder, folder: Path | None = None) -> Iterator[tuple[Path, bool]]:
    """What is in a run folder, and whether it is of the run. Links are not followed."""
    for path in sorted((folder or run.path).iterdir()):
        if path.name in _FOLDERS and path.is_dir() and not path.is_symlink():
            for inner in sorted(path.iterdir()):
                yield inner, bool(_CHECKPOINTS.fullmatch(inner.name)) and _is_file(inner)
        elif path.name == COPY and path.is_dir() and not path.is_symlink():
            yield from _content(run, path)
        else:
            yield path, bool(_FILES.fullmatch(path.name)) and _is_file(path)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def remove_run(run: RunFolder) -> int:
    """Remove a run: its folder is renamed first, so that it is whole or gone; returns its bytes.

    Raises:
        RunError: as `check_removable`.
        StorageError: it cannot be renamed or removed.
    """
    size = check_removable(run)
    run.hold()  # no training may resume it meanwhile
    try:
        gone = run.path.with_name(f".{run.path.name}.removed-{secrets.token_hex(4)}")
        try:
            run.path.rename(gone)
        except OSError as error:
            raise storage_error(error, run.path) from None
        _forget(run.path)
        try:
            (gone / "config.json").unlink()  # what is left if this is interrupted is no run
            shutil.rmtree(gone)
        except OSError as error:
            raise storage_error(error, gone) from None
    finally:
        run.release()
    return size


def _forget(path: Path) -> None:
    """Remove the links to a run from the folder of runs."""
    with suppress(OSError, StorageError):
        for entry in runs_home().iterdir():
            if entry.is_symlink() and Path(os.path.realpath(entry)) == path:
                entry.unlink()
