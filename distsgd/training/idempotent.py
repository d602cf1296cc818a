"""A training that begins or goes on, by the same call: what lies in its run folder decides.

A service, a container and a job of a batch system are started again after a kill, a reboot or a
move, with the command that they were started with first.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from distsgd.config.settings import RESUMABLE_SETTINGS, TrainConfig
from distsgd.data.locations import expanded
from distsgd.errors import UsageError, storage_error
from distsgd.runs import RunFolder
from distsgd.spelling import spelled

__all__ = ["resumable_among", "run_to_resume"]

_FOLLOWS_WORKERS = "elastic"
_MOST_NAMED = 3
_UNFINISHED = {".running", "checkpoints"}


def run_to_resume(run_dir: str | Path | None, config: TrainConfig) -> Path | None:
    """The run in a folder, if a training with these settings is to continue it.

    What a process left there that was killed before it had written ``config.json`` is removed:
    nothing was trained yet.

    Args:
        run_dir: the folder of the training.
        config: its settings, as for a new run.

    Returns:
        the path of the run, which may be running or finished; None if it has not begun.

    Raises:
        UsageError: no folder is given, or the run in it has other settings.
        RunError: the run is damaged, or is being made by another process.
        StorageError: the folder cannot be read or cleared.
    """
    if run_dir is None:
        raise UsageError(
            f"{spelled('resume_if_exists')} needs the folder of the run",
            f"Give {spelled('run_dir')}",
        )
    path = expanded(run_dir).absolute()
    try:
        begun = (path / "config.json").is_file()
        if not begun and path.is_dir() and _is_unfinished(path):
            _clear(path)
    except OSError as error:
        raise storage_error(error, path) from None
    if not begun:
        return None
    run = RunFolder(path.resolve())
    _check_settings(run, config)
    return run.path


def resumable_among(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that a resume may change."""
    return {name: value for name, value in settings.items() if name in RESUMABLE_SETTINGS}


def _check_settings(run: RunFolder, config: TrainConfig) -> None:
    """Check that a run was begun with these settings, but for those that a resume may change."""
    began = run.settings()
    free = {*RESUMABLE_SETTINGS, _FOLLOWS_WORKERS}
    other = [
        one.name
        for one in fields(TrainConfig)
        # None: filled in when the dataset is known, as it was for the run.
        if one.name not in free
        and getattr(config, one.name) not in (None, getattr(began, one.name))
    ]
    if not other:
        return
    named = ", ".join(
        f"{config.given(name)} where it has {getattr(began, name)}" for name in other[:_MOST_NAMED]
    )
    more = f" and {len(other) - _MOST_NAMED} more" if len(other) > _MOST_NAMED else ""
    raise UsageError(
        f"the run in {run.path} was begun with other settings: {named}{more}",
        f"Give those of the run, or another {spelled('run_dir')}",
    )


def _is_unfinished(path: Path) -> bool:
    """Whether a folder holds only what is made before ``config.json``."""
    names = {one.name for one in path.iterdir()}
    strange = {
        name
        for name in names - _UNFINISHED
        if not (name.startswith(".config.json") and name.endswith(".tmp"))
    }
    checkpoints = path / "checkpoints"
    empty = not checkpoints.is_dir() or not any(checkpoints.iterdir())
    return bool(names) and not strange and empty


def _clear(path: Path) -> None:
    """Empty such a folder, unless the process that makes it lives.

    Raises:
        RunError: it does.
    """
    run = RunFolder(path)
    run.hold()
    try:
        with suppress(FileNotFoundError):
            run.checkpoints.rmdir()
        for file in path.iterdir():
            file.unlink(missing_ok=True)
    finally:
        run.release()
