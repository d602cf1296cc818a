"""A copy of the history before a fork, so that the fork needs no other folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from distsgd.data.folder_files import names_inside, read_inside, replace_inside
from distsgd.errors import storage_error
from distsgd.proof.timeline import Moment
from distsgd.runs import JOURNAL, Mark, RunFolder, checkpoint_path, checkpoint_versions
from distsgd.runs.journal import lines_until
from distsgd.runs.lineage import find_parent
from distsgd.runs.opened_run import OpenedRun
from distsgd.runs.parent import COPY, parent_of

__all__ = ["copy_history"]

_WHOLE = ("config.json", "kernels.json")
_BEFORE = "residuals-"


def copy_history(parent: OpenedRun, fork: RunFolder, moment: Moment) -> None:
    """Copy a run up to an update into the folder of its fork, and the runs before it into that.

    Args:
        parent: the run.
        fork: the folder of the fork.
        moment: where the fork begins.

    Raises:
        RunError: a run before it is gone.
        StorageError: the disk is full.
    """
    _copy(parent.folder, fork.path / COPY, moment.version, moment.mark)


def _copy(run: RunFolder, into: Path, update: int, mark: Mark) -> None:
    before = parent_of(run)
    try:
        (into / "checkpoints").mkdir(parents=True, mode=0o700)
        into.chmod(0o700)
        for name in _WHOLE:
            if (run.path / name).exists():
                replace_inside(into / name, read_inside(run.path / name))
        replace_inside(into / JOURNAL, lines_until(run.path, mark))
        metrics = run.path / "metrics.jsonl"
        if metrics.exists():
            replace_inside(into / "metrics.jsonl", _metrics_until(metrics, update))
        for path in _checkpoints(run, update):
            replace_inside(into / "checkpoints" / path.name, read_inside(path), below=into)
    except OSError as error:
        raise storage_error(error, into) from None
    if before is not None:
        _copy(find_parent(run, before), into / COPY, before.update, before.mark)


def _metrics_until(path: Path, update: int) -> bytes:
    """The records of metrics up to an update."""
    lines = read_inside(path).splitlines(keepends=True)
    return b"".join(line for line in lines if _step(line) <= update)


def _step(line: bytes) -> int:
    """The update that a record is of; 0 for a damaged one."""
    with suppress(ValueError, AttributeError, TypeError, RecursionError):
        record = json.loads(line)
        return int(record.get("step") or record.get("version") or 0)
    return 0


def _checkpoints(run: RunFolder, update: int) -> Iterator[Path]:
    """The checkpoints up to an update, with their residuals."""
    kept = {version for version in checkpoint_versions(run.checkpoints) if version <= update}
    for version in kept:
        yield checkpoint_path(run.checkpoints, version)
    for name in names_inside(run.checkpoints, below=run.path):
        if name.startswith(_BEFORE) and int(name.split("-")[1]) in kept:
            yield run.checkpoints / name
