"""The replay: a run computed anew, serially, from its journal alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from distsgd.api.audit import open_run
from distsgd.api.jobs import make_job
from distsgd.core.arrays import Floats
from distsgd.core.initial import pad, unpad
from distsgd.core.messages import Lease
from distsgd.core.optimizers import make_optimizer
from distsgd.core.range_server import rebuilt
from distsgd.core.reduction_tree import TreeSum
from distsgd.core.update import Updater
from distsgd.errors import JournalError
from distsgd.run.checkpoint import latest_checkpoint, read_checkpoint, weights_sha256
from distsgd.run.folder import RunFolder
from distsgd.run.journal import Record, read_journal
from distsgd.runtime.job import Job
from distsgd.runtime.worker import Worker

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
    records = list(read_journal(folder.path, config, dataset.manifest.digest))
    job = make_job(config, dataset)
    checked, found, before = 0, None, 0
    with threadpool_limits(1):
        for version, weights in _Replayer(job, folder).versions(records):
            found = unpad(weights, job.classes, job.features)
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


class _Replayer:
    """Makes every update of a journal, keeping each W for as long as it is read."""

    def __init__(self, job: Job, folder: RunFolder) -> None:
        self._job, self._worker = job, Worker(job)
        self._fleet: dict[int, tuple[Worker, int]] = {}
        weights = pad(read_checkpoint(folder.checkpoints / "step-000000000.npz").weights)
        self._updater = Updater(
            weights,
            decay=job.decay(),
            optimizer=make_optimizer(job.optimizer, weights, job.momentum),
            schedule=job.schedule,
        )

    def versions(self, records: list[Record]) -> Iterator[tuple[int, Floats]]:
        """Every version and its W, from 0; W is valid until the next is asked for."""
        last_read = {
            lease.version: number
            for number, record in enumerate(records)
            for _, lease in record.contributions
        }
        kept: dict[int, Floats] = {}
        for number, record in enumerate(records):
            yield number, self._updater.weights
            if last_read.get(number, -1) >= number:
                kept[number] = self._updater.weights.copy()
            with np.errstate(all="ignore"):
                self._update(number + 1, record, kept)
            for version in [version for version in kept if last_read[version] <= number]:
                del kept[version]
        yield len(records), self._updater.weights

    def _update(self, number: int, record: Record, kept: dict[int, Floats]) -> None:
        minibatch = rebuilt(record)
        for worker, lease in record.contributions:
            engine = self._worker_of(number, worker, lease)
            if lease.version not in kept:
                raise JournalError(number, f"it reads version {lease.version}, which is not there")
            push = engine.answer((lease, kept[lease.version]))
            minibatch.leased[lease.step, lease.first, lease.last] = worker, lease
            if not minibatch.take(worker, push, self._tree):
                raise JournalError(number, "its contributions do not go together")
        _, _, examples = minibatch.loss()
        update = self._updater.average if minibatch.shares else self._updater.apply
        update(minibatch.gradient(), examples, record.step)

    def _worker_of(self, number: int, worker: int, lease: Lease) -> Worker:
        """What computes the leases of a worker: with error feedback each one has its own memory."""
        if self._job.compress == "none":
            return self._worker
        engine, serial = self._fleet.get(worker, (None, 0))
        if lease.serial != serial:
            raise JournalError(
                number, f"an answer of worker {worker} is not here, and took part in its feedback"
            )
        engine = engine or Worker(self._job, like=self._worker)
        self._fleet[worker] = engine, serial + 1
        return engine

    def _tree(self) -> TreeSum:
        return TreeSum(self._job.plan.most_slots, self._job.parameters, self._job.dtype)
