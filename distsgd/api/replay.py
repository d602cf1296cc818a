"""The replay: a run computed anew, serially, from its journal alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from threadpoolctl import threadpool_limits

from distsgd.api.audit import open_run
from distsgd.api.replayer import Replayer, records_of
from distsgd.core.initial import pad, unpad
from distsgd.errors import JournalError
from distsgd.run.checkpoint import latest_checkpoint, read_checkpoint, weights_sha256
from distsgd.run.journal import read_journal
from distsgd.runtime.job import Snapshot

__all__ = ["Replay", "replay"]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a replay came to.

    Attributes:
        run_dir: the run folder.
        updates: updates that were made anew.
        weights_sha256: SHA-256 of the W that the replay ends with.
        same_bits: whether each checkpoint of the run has the bits of the replay.
        checkpoints: how many were compared.
    """

    run_dir: str
    updates: int
    weights_sha256: str
    same_bits: bool
    checkpoints: int


def replay(run: str | Path) -> Replay:
    """Compute a run anew from its first W and its journal, and compare its checkpoints.

    Args:
        run: path or name of a run, or "latest".

    Raises:
        JournalError: the journal does not hold, or a checkpoint has other bits than the replay.
        RunError: there is no such run, or it is damaged.
    """
    folder, config, dataset = open_run(run)
    entries = list(read_journal(folder.path, config, dataset.manifest.digest))
    records = records_of(entries)
    first = read_checkpoint(folder.checkpoints / "step-000000000.npz").weights
    checked, found, before = 0, None, 0
    with threadpool_limits(1):
        replayer = Replayer(config, dataset, Snapshot(0, pad(first), {}))
        for version, weights in replayer.versions(entries):
            found = unpad(weights, len(first), dataset.manifest.features)
            path = folder.checkpoints / f"step-{version:09d}.npz"
            if path.exists():
                checked += 1
                if read_checkpoint(path).weights.tobytes() != found.tobytes():
                    raise JournalError(
                        before + 1,
                        f"the bits of W differ from version {before + 1} to {version} on",
                    )
                before = version
    last = read_checkpoint(latest_checkpoint(folder.checkpoints)).version
    if last > len(records):
        raise JournalError(len(records) + 1, f"it is missing: a checkpoint has version {last}")
    assert found is not None
    return Replay(
        run_dir=str(folder.path),
        updates=len(records),
        weights_sha256=weights_sha256(found),
        same_bits=True,
        checkpoints=checked,
    )
