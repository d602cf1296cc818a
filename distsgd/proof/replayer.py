"""Recomputes the updates of a journal, one after another: to replay a run, or to resume it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import Floats
from distsgd.core.fingerprint import changed_bit, fingerprint
from distsgd.core.messages import Lease, Push, incarnation_of
from distsgd.core.model import SMALL_PRODUCTS
from distsgd.core.optim import (
    ErrorFeedback,
    Residual,
    Residuals,
    Updater,
    shared_out,
    start_of_incarnation,
)
from distsgd.core.reduction_tree import TreeSum
from distsgd.core.server import rebuilt
from distsgd.data.dataset import Dataset
from distsgd.engine.job import Job, Snapshot
from distsgd.engine.worker import Worker
from distsgd.errors import JournalError
from distsgd.runs import Entry, Model, Record, Resumed, RunFolder, other_kernels

__all__ = ["Replayer", "Step", "records_of", "refuse", "start_of"]


@dataclass(frozen=True)
class _Made:
    """What an update was made of: its job, sum of losses, correct ones, examples, learning rate."""

    job: Job
    loss: float
    correct: int
    examples: int
    learning_rate: float


@dataclass(frozen=True, eq=False)
class Step:
    """One update, recomputed. Its arrays are valid until the next one is asked for.

    Attributes:
        record: its line of the journal.
        job: the settings that it was made with.
        before: W before it, flat and padded, shape (parameters,).
        after: W after it.
        reads: version -> W, of all versions that its contributions read, and of some others.
        gradient: mean over its examples of dL_i/dW, without the penalty, flat and padded; of local
            steps the mean of (W before - W after) of the replicas, the pseudo-gradient.
        loss: mean of L_i over its examples, each at the W that its slot read, without the penalty.
        correct: how many of them that W classifies as their label.
        examples: how many there are.
        learning_rate: that of its step of the plan.
    """

    record: Record
    job: Job
    before: Floats
    after: Floats
    reads: Mapping[int, Floats]
    gradient: Floats
    loss: float
    correct: int
    examples: int
    learning_rate: float


def records_of(entries: Sequence[Entry]) -> list[Record]:
    """The updates among the lines of a journal."""
    return [entry for entry in entries if isinstance(entry, Record)]


def start_of(model: Model, residuals: Residuals | None = None) -> Snapshot:
    """The server at a checkpoint, with the residuals that belong to it."""
    pad = model.architecture.pad
    state = {name: pad(array) for name, array in model.state.items()}
    reads = {version: pad(array) for version, array in model.reads.items()}
    return Snapshot(model.version, pad(model.weights), state, residuals or {}, reads=reads)


def refuse(run: RunFolder) -> Callable[[JournalError], None]:
    """Raises what it is given, with a remark if parts of a run were computed by other kernels."""

    def raises(error: JournalError) -> None:
        remark = other_kernels(run)
        raise JournalError(error.line, error.why + (f"; but {remark}" if remark else ""))

    return raises


class Replayer:
    """Recomputes every update of a journal, keeping each W for as long as it is read.

    Args:
        config: the settings of the run before the first line.
        dataset: what it was trained on.
        start: where to start; with error feedback it has the residuals.
        products: how the run multiplies its slots.
        differs: called with what is wrong where W has another fingerprint than the journal says,
            as `refuse` makes; None if the journal is not of this W.

    Attributes:
        examples: of all updates that it has made.
        compared: updates whose W was compared with its fingerprint.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        start: Snapshot,
        products: str = SMALL_PRODUCTS,
        differs: Callable[[JournalError], None] | None = None,
    ) -> None:
        self._differs, self.compared = differs, 0
        self._config, self._dataset, self._products = config, dataset, products
        self._job = make_job(replace(config, servers=1), dataset, products)
        self._worker = Worker(self._job, split=dataset.train)
        self._sum = TreeSum(self._job.plan.most_slots, self._job.parameters, self._job.dtype)
        self._compressed = _CompressedAnswers(self._job, self._worker, start.residuals or {})
        self._kept = dict(start.reads)  # older version -> W, of those that are still read
        self._later: Sequence[Entry] = ()
        self._made: _Made | None = None  # of the last update
        self.examples = 0
        self._gradient: Floats | None = None  # of the last update, once `steps` is asked for
        weights = start.weights.copy()
        optimizer = self._job.update_rule(weights)
        for name, array in start.state.items():
            optimizer.state[name][...] = array
        self._updater = Updater(
            weights, decay=self._job.decay(), optimizer=optimizer, schedule=self._job.schedule,
            version=start.version,
        )  # fmt: skip

    def residuals(self) -> Residuals:
        """The residuals that belong to the version that `versions` yielded last."""
        return self._compressed.residuals()

    def keep_for(self, later: Sequence[Entry]) -> None:
        """Keep what these lines read too, which follow on those that are asked for."""
        self._later = later

    def versions(self, entries: Sequence[Entry]) -> Iterator[tuple[int, Floats]]:
        """Yield every version from the start on with its W, which is valid until the next version.

        Args:
            entries: lines of the journal, from the start on at the latest.

        Raises:
            JournalError: names the first line that cannot be recomputed.
        """
        for _ in self._updates(entries):
            yield self._updater.version, self._updater.weights
        yield self._updater.version, self._updater.weights

    def steps(self, entries: Sequence[Entry]) -> Iterator[Step]:
        """Yield every update after the start, recomputed.

        Args:
            entries: lines of the journal, from the start on at the latest.

        Raises:
            JournalError: names the first line that cannot be recomputed.
        """
        weights = self._updater.weights
        before, self._gradient = np.empty_like(weights), np.empty_like(weights)
        asked: tuple[Record, dict[int, Floats]] | None = None
        for record, kept in self._updates(entries):
            if asked is not None:
                yield self._step(*asked, before)
            before[...] = weights
            asked = record, {**kept, record.version - 1: before}
        if asked is not None:
            yield self._step(*asked, before)

    def _step(self, record: Record, reads: dict[int, Floats], before: Floats) -> Step:
        """The update that was made last."""
        made, gradient = self._made, self._gradient
        assert made is not None
        assert gradient is not None
        return Step(
            record=record,
            job=made.job,
            before=before,
            after=self._updater.weights,
            reads=reads,
            gradient=gradient,
            loss=made.loss / made.examples,
            correct=made.correct,
            examples=made.examples,
            learning_rate=made.learning_rate,
        )

    def _updates(self, entries: Sequence[Entry]) -> Iterator[tuple[Record, dict[int, Floats]]]:
        """Make one update after another, each once its caller has seen W before it.

        Yields:
            the record of the update that comes next, and the older W that it and others read.
        """
        records, start = records_of(entries), self._updater.version
        last_read = {
            lease.version: record.version
            for record in (*records, *records_of(self._later))
            if record.version > start
            for _, lease in record.contributions
        }
        kept = self._kept
        if self._job.compress != "none":
            self._compressed.expect([record for record in records if record.version > start])
        for entry in entries:
            if isinstance(entry, Resumed):
                self._resumed(entry)
            if not isinstance(entry, Record):
                continue
            before = self._updater.version
            if entry.version <= start:
                continue
            if entry.version != before + 1:
                raise JournalError(before + 1, f"it makes version {entry.version}")
            if (last := last_read.get(before, -1)) > before:
                weights = self._updater.weights
                kept[before] = weights if last == entry.version else weights.copy()
            yield entry, kept
            with np.errstate(all="ignore"):
                self._update(entry, kept)
            self._compare(entry)
            for version in [
                version for version in kept if last_read.get(version, -1) <= entry.version
            ]:
                del kept[version]

    def _compare(self, record: Record) -> None:
        """Compare W after an update with the fingerprint of its record."""
        expected, weights = record.fingerprint, self._updater.weights
        if expected is None or self._differs is None:
            return
        self.compared += 1
        found = fingerprint(weights)
        if found != expected:
            changed = changed_bit(found, expected, weights)
            where = "" if changed is None else (
                f"; in one bit, if in no more: bit {changed.bit} of entry {changed.entry} of flat W"
            )  # fmt: skip
            self._differs(JournalError(
                record.version, f"the bits of W differ after update {record.version:,}, first here"
                + where
            ))  # fmt: skip

    def snapshot(self) -> Snapshot:
        """The server after the last update that was made, with what later lines read."""
        updater = self._updater
        state = {name: array.copy() for name, array in updater.optimizer.state.items()}
        reads = {n: array for n, array in self._kept.items() if n < updater.version}
        return Snapshot(
            updater.version, updater.weights.copy(), state, self._compressed.residuals(),
            reads=reads, usable=not self._compressed.early,
        )  # fmt: skip

    def _resumed(self, entry: Resumed) -> None:
        """The schedule may change from here on, and the residuals were redistributed."""
        if entry.epochs != self._job.plan.epochs:
            self._job = make_job(
                replace(self._config, servers=1, epochs=entry.epochs), self._dataset,
                self._products,
            )  # fmt: skip
            self._updater.schedule = self._job.schedule
            self._worker = Worker(self._job, split=self._dataset.train)
        self._compressed.resumed(self._worker, max(1, entry.workers))

    def _update(self, record: Record, kept: dict[int, Floats]) -> None:
        number = record.version
        if (whole := self._as_one(record)) is not None:
            record = whole
        minibatch = rebuilt(record)
        for worker, lease in record.contributions:
            minibatch.settle()  # the next answer overwrites the gradients of the one before
            push = self._answer(number, worker, lease, kept)
            minibatch.leased[lease.piece] = worker, lease
            if not minibatch.take(worker, push, self._tree, borrow=True):
                raise JournalError(number, "its contributions do not fit together")
        loss, correct, examples = minibatch.loss()
        total = minibatch.gradient()
        if self._gradient is not None:
            np.multiply(total, total.dtype.type(1 / examples), out=self._gradient)
        update = self._updater.average if minibatch.replicas else self._updater.apply
        rate = update(total, examples, record.step)
        self._made = _Made(self._job, loss, correct, examples, rate)
        self.examples += examples

    def _answer(self, number: int, worker: int, lease: Lease, kept: dict[int, Floats]) -> Push:
        if self._job.compress != "none":
            return self._compressed.answer(number, worker, lease, kept)
        return self._worker.answer(lease, _weights(number, lease, kept))

    def _as_one(self, record: Record) -> Record | None:
        """The same update as one piece, where its contributions read one W; None elsewhere.

        Slots are summed along one tree, so the bits are the same, and one large product takes less
        time than several small ones.
        """
        contributions = record.contributions
        if len(contributions) == 1 or record.requeued or self._job.compress != "none":
            return None
        worker, lease = contributions[0]
        last = lease.first
        for _, other in contributions:
            if other.first != last or other.replicas or other[3:5] != lease[3:5]:
                return None
            if other.step != lease.step:
                return None
            last = other.last
        if lease.first or last != self._job.plan.slots(lease.step):
            return None
        return replace(record, contributions=((worker, lease._replace(last=last)),))

    def _tree(self) -> TreeSum:
        return self._sum


class _CompressedAnswers:
    """The answers of workers with error feedback, each of which depends on the earlier ones.

    An update may use answers of a worker in another order than the worker gave them; here they are
    computed in the order in which they were given.

    Args:
        job: what was trained.
        worker: computes the gradients.
        residuals: of the workers, where the replay starts.
    """

    def __init__(self, job: Job, worker: Worker, residuals: Residuals) -> None:
        self._codec, self._feeds_back = job.codec(), job.error_feedback
        self._nothing = np.zeros(job.parameters, dtype=job.dtype)
        self._worker = worker
        self._before = residuals  # of the workers that have not answered since
        self._feedback: dict[tuple[int, int], ErrorFeedback] = {}
        self._serials: dict[tuple[int, int], int] = {}
        self._expected: dict[tuple[int, int], deque[tuple[int, Lease]]] = {}
        self._early: dict[tuple[int, int], Push] = {}

    def expect(self, records: list[Record]) -> None:
        """Announce all records that follow."""
        for record in records:
            for worker, lease in record.contributions:
                incarnation = (worker, incarnation_of(lease.serial))
                self._expected.setdefault(incarnation, deque()).append((record.version, lease))
        for incarnation, leases in self._expected.items():
            self._expected[incarnation] = deque(sorted(leases, key=lambda entry: entry[1].serial))

    @property
    def early(self) -> bool:
        """Whether an answer was computed whose update is still to come."""
        return bool(self._early)

    def resumed(self, worker: Worker, workers: int) -> None:
        """Redistribute the residuals over another number of workers."""
        self._before, self._worker = shared_out(self.residuals(), workers), worker
        self._feedback.clear()
        self._serials.clear()

    def residuals(self) -> dict[int, Residual]:
        """The residual of each worker after the last of its answers that was used."""
        found = dict(self._before)
        for incarnation in sorted(self._serials):  # the last one of a worker counts
            serial = self._serials[incarnation]
            values = self._feedback[incarnation].left(serial).copy() if self._feeds_back else None
            found[incarnation[0]] = Residual(serial, values)
        return found

    def answer(self, number: int, worker: int, lease: Lease, kept: dict[int, Floats]) -> Push:
        """The answer to a lease; earlier answers are computed first, and kept."""
        expected = self._expected[worker, incarnation_of(lease.serial)]
        while (worker, lease.serial) not in self._early:
            found, earlier = expected.popleft()
            self._early[worker, earlier.serial] = self._next(found, worker, earlier, kept)
        return self._early.pop((worker, lease.serial))

    def _next(self, number: int, worker: int, lease: Lease, kept: dict[int, Floats]) -> Push:
        incarnation = (worker, incarnation_of(lease.serial))
        if incarnation not in self._feedback:
            self._feedback[incarnation] = self._feedback_from(
                start_of_incarnation(self._before.get(worker), lease.serial)
            )
        self._worker.feedback = self._feedback[incarnation]
        self._serials[incarnation] = lease.serial + 1
        try:
            return self._worker.answer(lease, _weights(number, lease, kept))
        except KeyError:
            raise JournalError(
                number,
                f"an earlier answer of worker {worker}, which its feedback depends on, is missing",
            ) from None

    def _feedback_from(self, residual: Residual) -> ErrorFeedback:
        assert self._codec is not None
        values = self._nothing if residual.values is None else residual.values
        return ErrorFeedback(self._codec, values, feedback=self._feeds_back, serial=residual.serial)


def _weights(number: int, lease: Lease, kept: dict[int, Floats]) -> Floats:
    """W as a lease read it."""
    if lease.version not in kept:
        raise JournalError(number, f"it reads version {lease.version}, which is missing")
    return kept[lease.version]
