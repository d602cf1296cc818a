"""The replay: a run computed anew, serially, from its journal alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distsgd.api.opened_run import open_run
from distsgd.api.replayer import Replayer, records_of, start_of
from distsgd.errors import JournalError
from distsgd.run.checkpoint import (
    checkpoint_path,
    latest_checkpoint,
    read_checkpoint,
    weights_sha256,
)
from distsgd.run.kernels import other_kernels
from distsgd.runtime.blas import one_blas_thread

__all__ = ["Replay", "replay"]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a replay came to.

    Attributes:
        run_dir: the run folder.
        updates: updates that were made anew.
        begins_after: the update after which the journal begins; see `Audit`.
        weights_sha256: SHA-256 of the W that the replay ends with.
        same_bits: whether each checkpoint of the run has the bits of the replay.
        checkpoints: how many were compared.
    """

    run_dir: str
    updates: int
    begins_after: int
    weights_sha256: str
    same_bits: bool
    checkpoints: int


def replay(run: str | Path) -> Replay:
    """Compute a run anew from its first W and its journal, and compare its checkpoints.

    Where the beginning of the journal was dropped, it begins with the checkpoint that is there.

    Args:
        run: path or name of a run, or "latest".

    Raises:
        JournalError: the journal does not hold, or a checkpoint has other bits than the replay.
        RunError: there is no such run, or it is damaged.
    """
    opened = open_run(run)
    folder, dataset = opened.folder, opened.dataset
    begin = opened.begin()
    entries = [entry for entry, _ in opened.entries(begin)]
    first = opened.base(begin)
    config = first.place.config(opened.origin) if first.place else opened.origin
    checked, found, before = 0, None, first.version
    with one_blas_thread():
        replayer = Replayer(config, dataset, start_of(first))
        for version, weights in replayer.versions(entries):
            found = first.architecture.unpad(weights)
            path = checkpoint_path(folder.checkpoints, version)
            if path.exists():
                checked += 1
                if read_checkpoint(path).weights.tobytes() != found.tobytes():
                    raise JournalError(
                        before + 1,
                        f"the bits of W differ from version {before + 1} to {version} on"
                        + (f"; but {other}" if (other := other_kernels(folder)) else ""),
                    )
                before = version
    last, known = (
        read_checkpoint(latest_checkpoint(folder.checkpoints)).version,
        first.version + len(records_of(entries)),
    )
    if last > known:
        raise JournalError(known + 1, f"it is missing: a checkpoint has version {last}")
    assert found is not None
    return Replay(
        run_dir=str(folder.path),
        updates=known - first.version,
        begins_after=first.version,
        weights_sha256=weights_sha256(found),
        same_bits=True,
        checkpoints=checked,
    )
