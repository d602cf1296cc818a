"""The replay: a run recomputed serially from its journal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter

from distsgd.engine.blas import one_blas_thread
from distsgd.engine.job import Snapshot
from distsgd.errors import JournalError, RunError
from distsgd.proof.forked import check_same_state, proven_parent
from distsgd.proof.replayer import Replayer, records_of, refuse, start_of
from distsgd.runs import Entry, Record, checkpoint_path, other_kernels, read_if_kept, weights_sha256
from distsgd.runs.journal_check import RunView, checked_lines, proven
from distsgd.runs.lineage import Segment, lineage
from distsgd.runs.opened_run import OpenedRun, open_run

__all__ = ["Replay", "replay"]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The result of a replay.

    Attributes:
        run_dir: the run folder.
        running: whether the run was training; the replay then covers ``updates`` updates after
            ``begins_after``.
        updates: updates that were recomputed.
        begins_after: the update after which the journal begins; see `Audit`.
        weights_sha256: SHA-256 of the W that the replay ends with.
        checkpoints: how many were compared; all have the same bits.
        fingerprints: updates whose W was compared with the fingerprint in the journal: all those
            that have one.
        parents: of a fork, how many runs before it were recomputed too, each up to the next.
        seconds: spent on the updates, without reading the journal and the checkpoints.
        images_per_second: training images of the updates in each of these seconds.
    """

    run_dir: str
    running: bool
    updates: int
    begins_after: int
    weights_sha256: str
    checkpoints: int
    fingerprints: int
    parents: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0


def replay(run: str | Path, own: bool = False) -> Replay:
    """Recompute a run from its first W and its journal, and compare its checkpoints.

    If earlier lines of the journal were dropped, the replay starts from the checkpoint there. A run
    that is training is recomputed up to its last update.

    Args:
        run: path or name of a run, or "latest". Of a fork, the whole history is recomputed.
        own: of a fork, recompute what is its own alone.

    Raises:
        JournalError: the journal is invalid, or a checkpoint differs from the replay.
        RunError: there is no such run, or it is damaged.
    """
    opened = open_run(run)
    with one_blas_thread():
        if own or opened.parent is None:
            return proven(opened, lambda view: _replayed(opened, view))
        found: list[Replay] = []
        for part, after in pairwise(lineage(opened)):
            found.append(proven_parent(part.run, partial(_until_fork, part, after.run)))
        last = proven(opened, lambda view: _replayed(opened, view))
    parts = [*found, last]
    seconds = sum(one.seconds for one in parts)
    images = sum(one.seconds * one.images_per_second for one in parts)
    return replace(
        last,
        seconds=seconds,
        images_per_second=images / seconds,
        updates=sum(one.updates for one in found) + last.updates,
        begins_after=found[0].begins_after,
        checkpoints=sum(one.checkpoints for one in found) + last.checkpoints,
        parents=len(found),
    )


def _until_fork(part: Segment, fork: OpenedRun, view: RunView) -> Replay:
    """The replay of a part of the history of a fork, whose end is where the fork begins."""
    known = fork.parent
    assert known is not None

    def ends(now: Snapshot) -> None:
        try:
            model = fork.base(known.mark)
        except RunError:  # its own journal was shortened since
            return
        check_same_state(model, now)

    return _replayed(part.run, view, part.last, ends)


def _replayed(
    opened: OpenedRun,
    view: RunView,
    last: int | None = None,
    ends: Callable[[Snapshot], None] = lambda now: None,
) -> Replay:
    """The replay of a view of a run.

    Args:
        opened: the run.
        view: of it.
        last: the update to stop at; None for the last.
        ends: called with the state there.
    """
    folder, first = opened.folder, view.base
    entries: list[Entry] = []
    for entry, _ in checked_lines(opened, view)[1] if first.version != last else ():
        entries.append(entry)
        if isinstance(entry, Record) and entry.version == last:
            break
    config = first.place.config(opened.origin) if first.place else opened.origin
    replayer = Replayer(
        config, opened.dataset, start_of(first, opened.residuals(first)), opened.products,
        refuse(folder),
    )  # fmt: skip
    checked, before, compared = 0, first.version, 0.0
    checkpoints, weights = set(view.checkpoints), first.weights
    begun = perf_counter()
    for version, weights in replayer.versions(entries):
        if version not in checkpoints:
            continue
        paused = perf_counter()
        found = first.architecture.unpad(weights)
        kept = read_if_kept(checkpoint_path(folder.checkpoints, version))
        compared += perf_counter() - paused
        if kept is None:
            continue
        checked += 1
        if kept.weights.tobytes() != found.tobytes():
            made = replayer.compared == version - first.version
            raise JournalError(
                version if made else before + 1,
                f"the checkpoint of version {version} has other bits of W than the journal"
                if made
                else f"the bits of W differ, first in one of versions {before + 1} to {version}"
                + (f"; but {other}" if (other := other_kernels(folder)) else ""),
            )
        before = version
    seconds = perf_counter() - begun - compared
    found = first.architecture.unpad(weights)
    ends(replayer.snapshot())
    known = first.version + len(records_of(entries))
    return Replay(
        run_dir=str(folder.path),
        running=view.running,
        updates=known - first.version,
        begins_after=first.version,
        seconds=seconds,
        images_per_second=replayer.examples / seconds,
        weights_sha256=weights_sha256(found),
        checkpoints=checked,
        fingerprints=replayer.compared,
    )
