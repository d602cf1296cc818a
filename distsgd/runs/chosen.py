"""The checkpoint of a run that a user names: the last, that of the best epoch, or one by number."""

from __future__ import annotations

from distsgd.errors import RunError, UsageError
from distsgd.runs.checkpoint import (
    Model,
    checkpoint_path,
    checkpoint_versions,
    read_checkpoint,
    read_if_kept,
    read_newest,
)
from distsgd.runs.folder import RunFolder
from distsgd.runs.metrics import best_epoch
from distsgd.spelling import spelling

__all__ = ["BEST", "LAST", "best_model", "chosen_model"]

LAST, BEST = "last", "best"

_SHOWN = 12
"""Checkpoints that an error lists."""


def chosen_model(run: RunFolder, which: str | int = LAST) -> Model:
    """The checkpoint that a user names, and its model.

    Args:
        run: the run.
        which: "last", "best" (the epoch with the largest validation accuracy), or the number of
            updates after which it was written.

    Raises:
        UsageError: that names no checkpoint.
        RunError: it is missing or damaged.
    """
    if which == LAST:
        return read_newest(run.checkpoints, run.settings().model)
    if which == BEST:
        given = spelling().given("checkpoint", LAST)
        return best_model(run, f"Give {given}")
    version = int(which) if str(which).isdecimal() and len(str(which)) < 19 else None
    if version is None or isinstance(which, bool):
        raise UsageError(
            f"{spelling().setting('checkpoint')} cannot be {which}",
            "Give last, best, or the number of updates of a checkpoint",
        )
    there = checkpoint_versions(run.checkpoints)
    if version not in there:
        shown = ", ".join(map(str, there[-_SHOWN:])) or "none"
        raise RunError(
            f"{run.path} has no checkpoint after {version} updates",
            f"The {'newest ' if len(there) > _SHOWN else ''}ones are {shown}",
        )
    return read_checkpoint(checkpoint_path(run.checkpoints, version), run.settings().model)


def best_model(run: RunFolder, otherwise: str) -> Model:
    """The model of the epoch with the largest validation accuracy.

    Args:
        run: the run.
        otherwise: what to do if there is none.

    Raises:
        RunError: the run has no rows held out, no epoch has ended, or its checkpoint is missing or
            damaged.
    """
    settings = run.settings()
    if not settings.validation:
        raise RunError(
            f"{run.path} was trained without rows held out, by which the best epoch is chosen",
            f"{otherwise}, or train with `distsgd train --validation 0.1`",
        )
    kind, found = settings.model, best_epoch(run.path)
    while found is not None:
        model = read_if_kept(checkpoint_path(run.checkpoints, found[-1]), kind)
        if model is not None:
            return model
        before, found = found, best_epoch(run.path)
        if found == before:
            raise RunError(
                f"the checkpoint of the best epoch of {run.path}, update {found[-1]}, is missing",
                otherwise,
            )
    raise RunError(f"no epoch of {run.path} has ended, so none is the best", otherwise)
