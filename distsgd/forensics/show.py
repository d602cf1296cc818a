"""Everything about one update: what went into it, what it did, and who computed it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.core.fingerprint import fingerprint
from distsgd.engine.blas import one_blas_thread
from distsgd.engine.job import Job
from distsgd.errors import UsageError
from distsgd.figures.contact_sheet import Group, Thumbnail, are_images, as_images, contact_sheet
from distsgd.forensics.gradients import cosine, examine, mean_gradient, rows_of
from distsgd.proof.moments import MOMENTS, update_of
from distsgd.proof.replayer import Step
from distsgd.proof.timeline import Timeline
from distsgd.runs.checkpoint import checkpoint_path, read_if_kept
from distsgd.runs.opened_run import OpenedRun, open_run

__all__ = ["ShownExample", "ShownPiece", "ShownUpdate", "show"]

_WORK = 4e8
"""Multiplications of the full gradient, beyond which it is that of a sample: about 0.1 s."""

_MOST_SHOWN = 1024
"""Images on a contact sheet."""


@dataclass(frozen=True, kw_only=True)
class ShownPiece:
    """What one worker computed for an update.

    Attributes:
        worker: its number.
        step: step of the plan, from 0; the first of a round of local steps.
        first: its first slot; of local steps, its replica.
        last: one past the last.
        version: the version of W that it read.
        staleness: updates between that one and this.
        examples: how many.
        loss: their mean loss at the W that was read.
        accuracy: share of them that this W classifies as their label.
    """

    worker: int
    step: int
    first: int
    last: int
    version: int
    staleness: int
    examples: int
    loss: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class ShownExample:
    """An example of an update.

    Attributes:
        example: its number in the training set.
        piece: which of the pieces it was in, from 0.
        step: step of the plan.
        slot: of that step.
        label: its class.
        guess: what W took it for before the update.
        loss_before: its loss at W before the update.
        loss_after: likewise after it.
        gradient_norm: norm of dL_i/dW at W before.
    """

    example: int
    piece: int
    step: int
    slot: int
    label: str
    guess: str
    loss_before: float
    loss_after: float
    gradient_norm: float


@dataclass(frozen=True, kw_only=True)
class ShownUpdate:
    """One update. Losses are means over its examples, without the penalty.

    Attributes:
        run_dir: the run folder.
        update: its number, from 1.
        epoch: of its examples, from 1.
        step: step of the plan that its learning rate belongs to, from 0.
        minibatch: its place among the minibatches of the epoch, from 1.
        minibatches: of an epoch.
        policy: the consistency policy.
        examples: how many.
        loss: as the training had it: of each slot at the W that it read.
        accuracy: likewise.
        loss_before: of all examples at W before the update.
        loss_after: likewise after it.
        accuracy_before: share of the examples that W before classified as their label.
        accuracy_after: likewise after it.
        learning_rate: of the update.
        gradient_norm: norm of the mean gradient that was applied, with the penalty; of local steps
            that of the mean of (W before - W after) of the replicas.
        cosine: of the angle between it and the full gradient.
        fresh_gradient_norm: norm of the gradient of the same examples at W before the update, not
            compressed; differs where gradients are stale, compressed, or those of local steps.
        fresh_cosine: of the angle between that one and the full gradient.
        full_gradient_norm: norm of the gradient over the training set at W before, with penalty;
            None if it was not computed.
        full_examples: how many examples it is over.
        training_examples: how many there are.
        step_norm: norm of W after - W before.
        weight_norm: norm of W before.
        step_ratio: of the two.
        optimizer: the update rule.
        state_norms: norm of each array of its state after the update.
        compression: how gradients were compressed, or "none".
        residual_norms: worker -> norm of what its error feedback has not sent yet, after.
        pieces: what each worker computed.
        deferred: pieces put off to a later update, each (step, first slot, one past the last).
        recorded: what the recomputed W was compared with: "fingerprint", "checkpoint" or "".
        same_bits: whether it has the same bits; None if nothing is recorded of it.
        all: the examples, in the order of the pieces.
        rows: their rows in the dataset, shape (examples, features).
        shape: of an example.
    """

    run_dir: str
    update: int
    epoch: int
    step: int
    minibatch: int
    minibatches: int
    policy: str
    examples: int
    loss: float
    accuracy: float
    loss_before: float
    loss_after: float
    accuracy_before: float
    accuracy_after: float
    learning_rate: float
    gradient_norm: float
    cosine: float | None
    fresh_gradient_norm: float
    fresh_cosine: float | None
    full_gradient_norm: float | None
    full_examples: int
    training_examples: int
    step_norm: float
    weight_norm: float
    step_ratio: float
    optimizer: str
    state_norms: dict[str, float]
    compression: str
    residual_norms: dict[int, float]
    pieces: list[ShownPiece]
    deferred: list[tuple[int, int, int]]
    recorded: str
    same_bits: bool | None
    all: list[ShownExample]
    rows: NDArray[Any] = field(repr=False)
    shape: tuple[int, ...]

    def worst(self, number: int = 5) -> list[ShownExample]:
        """The examples with the largest loss before the update, the largest first."""
        return sorted(self.all, key=lambda one: -one.loss_before)[:number]

    @property
    def has_images(self) -> bool:
        """Whether `sheet` can show the examples."""
        return are_images(self.shape) and self.rows.dtype == np.uint8

    def sheet(self) -> bytes:
        """A contact sheet of the examples as a PNG: label, guess and loss before, slot by slot.

        Raises:
            UsageError: they are not images.
        """
        if not self.has_images:
            raise UsageError("the examples of this run are no images", "Print them as a table")
        images, shown = as_images(self.rows, self.shape), list(range(len(self.all)))
        note = ""
        if len(shown) > _MOST_SHOWN:
            shown = sorted(sorted(shown, key=lambda i: -self.all[i].loss_before)[:_MOST_SHOWN])
            note = f"{_MOST_SHOWN:,} of {len(self.all):,} images: those with the largest loss"
        groups: dict[tuple[int, int, int], list[Thumbnail]] = {}
        for number in shown:
            one = self.all[number]
            wrong = one.guess != one.label
            caption = one.label, f"{one.guess} {one.loss_before:.2f}"
            thumbnail = Thumbnail(images[number], caption, wrong)
            groups.setdefault((one.piece, one.step, one.slot), []).append(thumbnail)
        title = (
            f"update {self.update:,}, epoch {self.epoch}: loss {self.loss_before:.4f} before, "
            f"{self.loss_after:.4f} after"
        )
        return contact_sheet(title, [Group(self._heading(*key), group)
                                     for key, group in groups.items()], 16, note)  # fmt: skip

    def _heading(self, piece: int, step: int, slot: int) -> str:
        worker, version = self.pieces[piece].worker, self.pieces[piece].version
        return (
            f"step {step:,}, slot {slot}: worker {worker} at version {version:,}. "
            "Label; guess and loss before the update"
        )


def show(
    run: str | Path | os.PathLike[str] | OpenedRun, update: int | str, *, rows: int | None = None
) -> ShownUpdate:
    """Recompute one update of a run, and measure it.

    Args:
        run: path or name of a run, "latest", a loaded run; or an open one.
        update: see `distsgd.proof.moments.MOMENTS`.
        rows: training examples that the full gradient is computed over, a random sample; 0 for
            none; None for all, or as many as take about 0.1 s. None is 0 for a dataset that is
            streamed from a store.

    Raises:
        UsageError: the run has no such update.
        RunError: the run is missing or damaged, or cannot be recomputed there.
    """
    if not isinstance(run, OpenedRun):
        run = open_run(run if isinstance(run, str) else Path(run))
    opened = run
    with one_blas_thread():
        timeline = Timeline(opened)
        number = update_of(opened, update, timeline)
        if number < 1:
            raise UsageError("update 0 is the start, which nothing made", f"Give {MOMENTS}")
        (step,) = list(timeline.steps(number, number))
        return _shown(opened, timeline, step, rows)


def _shown(
    opened: OpenedRun, timeline: Timeline, step: Step, wanted: int | None
) -> ShownUpdate:  # fmt: skip
    job, record, split = step.job, step.record, opened.dataset.train
    manifest, version = opened.dataset.manifest, step.record.version
    places = list(_examples(step))
    indices = np.concatenate([part for _, _, _, part in places])
    pixels, labels = rows_of(split, indices, manifest.features), split.labels_of(indices)
    before = examine(job, step.before, pixels, labels)
    after = examine(job, step.after, pixels, labels)
    fresh = mean_gradient(job, split, step.before, indices)
    later = mean_gradient(job, split, step.after, indices)
    penalty = job.decay() * step.before
    local = any(lease.replicas for _, lease in record.contributions)
    applied = step.gradient + (0 if local else penalty)
    sample = _sample(opened, job, wanted)
    full = mean_gradient(job, split, step.before, sample) if len(sample) else None
    whole = None if full is None else full.gradient + penalty
    names, numbers = manifest.classes, np.cumsum([0, *(len(part) for *_, part in places)])
    every = [
        ShownExample(
            example=int(indices[i]), piece=piece, step=at, slot=slot,
            label=names[int(labels[i])], guess=names[int(before.guesses[i])],
            loss_before=float(before.losses[i]), loss_after=float(after.losses[i]),
            gradient_norm=float(before.gradient_norms[i]),
        )
        for (piece, at, slot, part), low in zip(places, numbers, strict=False)
        for i in range(low, low + len(part))
    ]  # fmt: skip
    size, moved = _norm(step.before), _norm(step.after.astype(np.float64) - step.before)
    states, residuals = _states(timeline, job, version)
    recorded, same = _compared(opened, step)
    plan, place = job.plan, record.contributions[0][1].step
    return ShownUpdate(
        run_dir=str(opened.folder.path),
        update=version,
        epoch=plan.epoch_of(place) + 1,
        step=record.step,
        minibatch=record.step % plan.steps_per_epoch + 1,
        minibatches=plan.steps_per_epoch,
        policy=job.policy.name,
        examples=step.examples,
        loss=step.loss,
        accuracy=step.correct / step.examples,
        loss_before=fresh.loss,
        loss_after=later.loss,
        accuracy_before=fresh.accuracy,
        accuracy_after=later.accuracy,
        learning_rate=step.learning_rate,
        gradient_norm=_norm(applied),
        cosine=None if whole is None else cosine(applied, whole),
        fresh_gradient_norm=_norm(fresh.gradient + penalty),
        fresh_cosine=None if whole is None else cosine(fresh.gradient + penalty, whole),
        full_gradient_norm=None if whole is None else _norm(whole),
        full_examples=len(sample),
        training_examples=plan.examples,
        step_norm=moved,
        weight_norm=size,
        step_ratio=moved / size if size else float("nan"),
        optimizer=job.optimizer,
        state_norms=states,
        compression=job.compress,
        residual_norms=residuals,
        pieces=list(_pieces(opened, step, places)),
        deferred=[(at, first, last) for _, at, first, last in record.requeued],
        recorded=recorded,
        same_bits=same,
        all=every,
        rows=pixels,
        shape=tuple(manifest.shape),
    )


def _examples(step: Step) -> Iterator[tuple[int, int, int, NDArray[np.int64]]]:
    """Number of the piece, step of the plan, slot, and examples, of all slots of an update."""
    plan = step.job.plan
    orders: dict[int, NDArray[np.int64]] = {}
    for number, (_, lease) in enumerate(step.record.contributions):
        for at, first, last in lease.slots(plan):
            epoch = plan.epoch_of(at)
            if epoch not in orders:
                orders[epoch] = plan.order(epoch)
            for slot in range(first, last):
                low, high = plan.slot(at, slot)
                yield number, at, slot, orders[epoch][low:high]


def _pieces(
    opened: OpenedRun, step: Step, places: list[tuple[int, int, int, NDArray[np.int64]]]
) -> Iterator[ShownPiece]:
    for number, (worker, lease) in enumerate(step.record.contributions):
        own = np.concatenate([part for piece, _, _, part in places if piece == number])
        found = mean_gradient(step.job, opened.dataset.train, step.reads[lease.version], own)
        yield ShownPiece(
            worker=worker,
            step=lease.step,
            first=lease.first,
            last=lease.last,
            version=lease.version,
            staleness=step.record.version - 1 - lease.version,
            examples=len(own),
            loss=found.loss,
            accuracy=found.accuracy,
        )


def _sample(opened: OpenedRun, job: Job, wanted: int | None) -> NDArray[np.int64]:
    """The training examples that the full gradient is computed over."""
    every = job.plan.trained
    if wanted is None:
        most = max(2048, int(_WORK / job.parameters))
        wanted = 0 if opened.dataset.streamed else most
    if wanted >= len(every):
        return every
    generator = np.random.default_rng(job.plan.seed)
    return np.sort(generator.choice(every, max(0, wanted), replace=False))


def _states(
    timeline: Timeline, job: Job, version: int
) -> tuple[dict[str, float], dict[int, float]]:  # fmt: skip
    """Norms of the state of the optimiser, and of the residuals, after an update."""
    if job.optimizer == "sgd" and not job.has_residuals:
        return {}, {}
    snapshot = timeline.at(version).snapshot
    residuals = {
        worker: _norm(residual.values)
        for worker, residual in sorted((snapshot.residuals or {}).items())
        if residual.values is not None
    }
    return {name: _norm(array) for name, array in snapshot.state.items()}, residuals


def _compared(opened: OpenedRun, step: Step) -> tuple[str, bool | None]:
    """What the run has recorded of W after an update, and whether the recomputed one is that."""
    folder, version = opened.folder.checkpoints, step.record.version
    recorded = getattr(step.record, "fingerprint", None)
    if recorded is not None:
        return "fingerprint", fingerprint(step.after) == recorded
    kept = read_if_kept(checkpoint_path(folder, version), opened.origin.model)
    if kept is None:
        return "", None
    found = step.job.architecture.unpad(step.after)
    return "checkpoint", kept.weights.tobytes() == found.tobytes()


def _norm(values: Floats) -> float:
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(values.astype(np.float64, copy=False)))
