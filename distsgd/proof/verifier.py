"""Compares sampled updates with an independent recomputation during training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import Floats
from distsgd.core.messages import Piece
from distsgd.core.model import SlotLoss
from distsgd.core.model.reference import LAMBDA, updated
from distsgd.core.plan import Plan
from distsgd.core.server import SampledUpdate
from distsgd.data.dataset import Dataset
from distsgd.engine.events import UpdateSampled
from distsgd.engine.job import Job
from distsgd.errors import VerificationError
from distsgd.proof.recomputing import Part, Recomputer, Sum

__all__ = ["Verifier"]

Array = NDArray[np.float64]

_OPERATIONS = 32
"""Roundings of an update rule for each value; none has more."""


class Verifier:
    """Recomputes updates, and keeps the largest deviation.

    Args:
        config: the settings.
        dataset: what is trained on.
        job: the same for the runtime.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset, job: Job) -> None:
        self._config, self._dataset, self._job = config, dataset, job
        self._recomputer: Recomputer | None = None
        self._last: tuple[int, Floats] | None = None
        self._updates = 0
        self._difference, self._tolerance, self._used = 0.0, 0.0, 0.0

    def went_back(self) -> None:
        """A server was restarted: its last updates may recur."""
        self._last = None

    def check(self, event: UpdateSampled) -> None:
        """Compare one update.

        Raises:
            VerificationError: they differ; names step, slot and worker.
        """
        if self._recomputer is None:
            self._recomputer = Recomputer(self._config, self._dataset, self._job)
        sampled = event.sampled
        total, parts = self._gradient(self._recomputer, sampled)
        with np.errstate(all="ignore"):
            self._chained(sampled)
            self._losses(sampled, parts)
            self._rate(sampled, self._recomputer)
            if self._config.compress == "none":
                self._total(sampled, self._recomputer, total, parts)
            self._after(sampled, self._recomputer)
        self._last = sampled.update.version, sampled.after
        self._updates += 1

    def summary(self, let_pass: int) -> dict[str, object]:
        """The results so far; differences are relative to the largest value of a gradient.

        Args:
            let_pass: sampled updates that were skipped, as too many waited.
        """
        unchecked = "" if self._config.compress == "none" else "gradients before compression"
        return {
            "share": self._config.verify,
            "updates": self._updates,
            "let_pass": let_pass,
            "largest_difference": self._difference,
            "tolerance": self._tolerance,
            "tolerance_used": self._used,
            "not_compared": unchecked,
        }

    def _gradient(self, by: Recomputer, sampled: SampledUpdate) -> tuple[Sum, list[Part]]:
        total, parts = None, []
        for worker, lease in sampled.update.contributions:
            found, slots = by.lease(worker, lease, sampled.read[lease.version])
            parts += slots
            if total is None:
                total = found
            else:
                total.add(found)
        assert total is not None
        return total, parts

    def _chained(self, sampled: SampledUpdate) -> None:
        """W must not change between two successive updates."""
        if self._last is None or self._last[0] != sampled.update.version - 1:
            return
        if not np.array_equal(self._last[1], sampled.before):
            at = int(np.argmax(np.abs(self._last[1] - sampled.before)))
            _differs(sampled, None, f"W before it, at {at},", self._last[1][at], sampled.before[at])

    def _losses(self, sampled: SampledUpdate, parts: Sequence[Part]) -> None:
        """The losses of slots, the mean of them, and how many examples there were."""
        update, sent = sampled.update, _in_order_of_leases(sampled, self._job.plan)
        if len(sent) != len(parts):
            _differs(sampled, None, "the number of slots", len(parts), len(sent))
        for part, found in zip(parts, sent, strict=True):
            losses = part.found.losses
            if found.examples != len(losses):
                _differs(sampled, part, "the number of examples", len(losses), found.examples)
            expected, bound = float(losses.sum()), part.found.loss_bound
            if self._config.consistency == "local":
                bound *= 1 + (self._config.local_steps or 1)
            if not abs(found.loss - expected) <= bound:
                _differs(sampled, part, "its loss", expected, found.loss, bound)
        examples = sum(len(part.found.losses) for part in parts)
        if examples != update.examples:
            _differs(sampled, None, "the number of examples", examples, update.examples)
        mean = sum(found.loss for found in sent) / examples
        if not abs(mean - update.loss) <= 1e-12 * abs(mean):
            _differs(sampled, None, "the mean loss", mean, update.loss)

    def _rate(self, sampled: SampledUpdate, by: Recomputer) -> None:
        rate, found = by.rate(sampled.update.step), sampled.update.learning_rate
        if not abs(rate - found) <= 1e-9 * self._config.peak_learning_rate:
            _differs(sampled, None, "the learning rate", rate, found)

    def _total(
        self, sampled: SampledUpdate, by: Recomputer, wanted: Sum, parts: Sequence[Part]
    ) -> None:
        """The sum of the gradients."""
        found, bound = by.kept(sampled.total), wanted.bound
        # The tree adds slots: a few roundings of the sum itself.
        bound = bound + LAMBDA * by.unit * np.abs(wanted.total) + np.finfo(np.float32).tiny
        off = found - wanted.total
        ratio = np.abs(off) / bound
        scale = float(np.abs(wanted.total).max()) or 1.0
        worst = int(np.argmax(np.nan_to_num(ratio, nan=np.inf)))
        if not ratio.flat[worst] <= 1:
            at = f"the sum of gradients, {by.place(off, worst)},"
            part = _explained(off, bound, parts, by)
            values = (array.flat[worst] for array in (wanted.total, found, bound))
            _differs(sampled, part, at, *values)
        self._difference = max(self._difference, float(np.abs(off).max()) / scale)
        self._tolerance = max(self._tolerance, float(bound.max()) / scale)
        self._used = max(self._used, float(ratio.flat[worst]))

    def _after(self, sampled: SampledUpdate, by: Recomputer) -> None:
        """W after the update, from W before and the sum that the server had."""
        update = sampled.update
        before, found = by.kept(sampled.before), by.kept(sampled.after)
        gradient = by.kept(sampled.total) / update.examples
        if update.contributions[0][1].replicas:
            wanted, size = before - gradient, np.abs(gradient)
        else:
            penalty = by.penalty(before)
            state = {name: by.kept(array) for name, array in sampled.state.items()}
            wanted, size = updated(
                self._config.optimizer, before, gradient + penalty,
                np.abs(gradient) + np.abs(penalty), state, by.rate(update.step),
                self._config.momentum, update.version,
            )  # fmt: skip
        bound = by.update_unit * (_OPERATIONS * size + 2 * np.abs(before)) + by.half_step
        bound += np.finfo(np.float32).tiny
        ratio = np.abs(found - wanted) / bound
        worst = int(np.argmax(np.nan_to_num(ratio, nan=np.inf)))
        if not ratio.flat[worst] <= 1:
            at = f"W after it, {by.place(found, worst)},"
            values = (array.flat[worst] for array in (wanted, found, bound))
            _differs(sampled, None, at, *values)
        self._used = max(self._used, float(ratio.flat[worst]))


def _in_order_of_leases(sampled: SampledUpdate, plan: Plan) -> list[SlotLoss]:
    """The losses that pushes carried, from the order of arrival into the order of the leases."""
    leases = {lease.piece: lease for _, lease in sampled.update.contributions}
    losses: dict[Piece, Sequence[SlotLoss]] = {}
    low = 0
    for piece in sampled.arrived:
        high = low + sum(last - first for _, first, last in leases[piece].slots(plan))
        losses[piece] = sampled.losses[low:high]
        low = high
    return [loss for piece in leases for loss in losses[piece]]


def _explained(off: Array, bound: Array, parts: Sequence[Part], by: Recomputer) -> Part | None:
    """The slot that explains a wrong sum, if just one does.

    One that was left out or counted twice; or one with an example whose pixel was another: then
    the column of the pixel is off by a multiple of that example's dL/ds.
    """
    for part in parts:
        for sign in (1, -1):
            if bool(np.all(np.abs(off + sign * part.found.gradient) <= 2 * bound)):
                return part
    first, limit = by.layers(off)[0], by.layers(bound)[0]
    column = first[:, int(np.argmax(np.linalg.norm(first / limit, axis=0)))]
    length = float(np.linalg.norm(column)) or 1.0
    angles = []
    for part in parts:
        errors = part.found.errors
        sizes = np.maximum(np.linalg.norm(errors, axis=1), 1e-300)
        angles.append(float(np.abs(errors @ column / (sizes * length)).max()))
    best = int(np.argmax(angles))
    alike = [number for number, angle in enumerate(angles) if angle > 0.99 * angles[best]]
    return parts[best] if (angles[best] > 0.999 and len(alike) == 1) or len(parts) == 1 else None


def _differs(
    sampled: SampledUpdate, part: Part | None, what: str, expected: object, found: object,
    bound: float | None = None,
) -> None:  # fmt: skip
    """Raise the error that names the update, the slot if it is known, and both values."""
    update = sampled.update
    workers = sorted({worker for worker, _ in update.contributions})
    who = f"worker {workers[0]}" if len(workers) == 1 else f"workers {workers}"
    place = f"step {update.step}, slot unknown, {who}"
    if part is not None:
        place = f"step {part.step}, slot {part.slot}, worker {part.worker}"
    near = "" if bound is None else f" (tolerance {bound:.3g})"
    raise VerificationError(
        f"update {update.version} does not verify: {place}: {what} should be {expected}, "
        f"and is {found}{near}",
        "The newest checkpoint is from before it. `distsgd data verify` checks the dataset; "
        "if that passes, suspect the memory of the machine",
    )
