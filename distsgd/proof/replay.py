"""The replay: a run computed anew, serially, from its journal alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distsgd.engine.blas import one_blas_thread
from distsgd.errors import JournalError
from distsgd.proof.replayer import Replayer, records_of, start_of
from distsgd.runs.checkpoint import checkpoint_path, read_if_kept, weights_sha256
from distsgd.runs.folder import other_kernels
from distsgd.runs.opened_run import OpenedRun, open_run
from distsgd.runs.run_view import RunView, checked_lines, proven

__all__ = ["Replay", "replay"]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a replay came to.

    Attributes:
        run_dir: the run folder.
        running: whether the run was training; then all of this is as of ``updates`` updates after
            ``begins_after``.
        updates: updates that were made anew.
        begins_after: the update after which the journal begins; see `Audit`.
        weights_sha256: SHA-256 of the W that the replay ends with.
        checkpoints: how many were compared; each has the bits of the replay.
    """

    run_dir: str
    running: bool
    updates: int
    begins_after: int
    weights_sha256: str
    checkpoints: int


def replay(run: str | Path) -> Replay:
    """Compute a run anew from its first W and its journal, and compare its checkpoints.

    Where the beginning of the journal was dropped, it begins with the checkpoint that is there. The
    run may be training: then it is computed as far as it has come.

    Args:
        run: path or name of a run, or "latest".

    Raises:
        JournalError: the journal does not hold, or a checkpoint has other bits than the replay.
        RunError: there is no such run, or it is damaged.
    """
    opened = open_run(run)
    with one_blas_thread():
        return proven(opened, lambda view: _replayed(opened, view))


def _replayed(opened: OpenedRun, view: RunView) -> Replay:
    """Raises JournalError if the journal does not hold, or a checkpoint has other bits."""
    folder, first = opened.folder, view.base
    entries = [entry for entry, _ in checked_lines(opened, view)[1]]
    config = first.place.config(opened.origin) if first.place else opened.origin
    replayer = Replayer(config, opened.dataset, start_of(first, opened.residuals(first)))
    checked, found, before = 0, first.weights, first.version
    for version, weights in replayer.versions(entries):
        found = first.architecture.unpad(weights)
        if version not in view.checkpoints:
            continue
        kept = read_if_kept(checkpoint_path(folder.checkpoints, version))
        if kept is None:
            continue
        checked += 1
        if kept.weights.tobytes() != found.tobytes():
            raise JournalError(
                before + 1,
                f"the bits of W differ from version {before + 1} to {version} on"
                + (f"; but {other}" if (other := other_kernels(folder)) else ""),
            )
        before = version
    known = first.version + len(records_of(entries))
    return Replay(
        run_dir=str(folder.path),
        running=view.running,
        updates=known - first.version,
        begins_after=first.version,
        weights_sha256=weights_sha256(found),
        checkpoints=checked,
    )
