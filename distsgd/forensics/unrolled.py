"""What the loss of an example would be, had training gone without another one: to first order.

A gradient's part of a step is carried on through all later updates: each of them sees a W that is
off by it, and moves that on by its own Hessian, penalty, momentum and learning rate. The sum over
the updates of an example is the derivative of the final loss by the factor of the example:
"SGD-influence" (Hara, Nitanda and Maehara, "Data Cleansing for Models Trained with SGD", NeurIPS
2019). It is computed backwards, as the gradient of the loss by W after the last update, after the
one before, and so on:

    u = dL/dW after update t;  the step subtracts rate * (share-weighted g + decay W), read at W_r
    influence of z  +=  rate * share * <u, g_z>
    dL/dW before    =   u - rate * decay u,   and dL/dW_r  -=  rate * sum of share * H_z u

For the linear softmax classifier, H_z u is X' ((diag(p) - p p') (X u)), and all that the way back
needs of the way forth are the probabilities p. An SVM has no curvature but at its kinks, where none
of this holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.core.model import LINEAR, softmax_probabilities
from distsgd.core.model.example_gradients import summed
from distsgd.engine.blas import one_blas_thread
from distsgd.engine.job import Job
from distsgd.errors import UsageError
from distsgd.forensics.contributions import Contributions
from distsgd.forensics.influence import Influence, Targets, ignored_of
from distsgd.proof.replayer import Step
from distsgd.proof.timeline import Timeline
from distsgd.runs.opened_run import OpenedRun

__all__ = ["unrolled"]

_MOST_BYTES = 1 << 30
"""Of probabilities in memory: of 26 million examples of 10 classes, say 500 epochs of CIFAR-10."""

_RULES = ("sgd", "momentum", "nesterov")
"""Update rules whose steps are linear in the gradient."""


@dataclass(frozen=True, eq=False)
class _Part:
    """What the way back needs of a contribution.

    Attributes:
        read: version of W that it was computed at; of local steps, that of the round.
        replica: its first leaf if it is a local step, else None.
        rows: the examples, shape (examples,).
        errors: of their scores, shape (examples, classes).
        probabilities: likewise.
        factors: of the examples; None if all count alike.
        share: of each in the mean.
        rate: learning rate.
    """

    read: int
    replica: int | None
    rows: NDArray[np.int64]
    errors: Floats
    probabilities: Floats
    factors: Floats | None
    share: float
    rate: float


@dataclass(frozen=True, eq=False)
class _Update:
    """An update on the way back.

    Attributes:
        version: of W after it.
        job: its settings.
        rate: its learning rate.
        parts: its contributions.
    """

    version: int
    job: Job
    rate: float
    parts: list[_Part]


def unrolled(run: OpenedRun, targets: Targets, last: int | None = None) -> Influence:
    """The influence of each training example on each target, through all later updates.

    Args:
        run: the run.
        targets: what is explained.
        last: the update whose W is asked for; None for the last of the run.

    Raises:
        UsageError: the model is not linear, the update rule not linear in the gradient, or the
            run too long; or it has no such update.
        RunError: it cannot be recomputed.
    """
    timeline = Timeline(run)
    first, last = timeline.first + 1, timeline.last if last is None else last
    contributions = Contributions(run.dataset.train)
    updates: list[_Update] = []
    final: Floats | None = None
    size = 0
    for step in timeline.steps(first, last) if last >= first else ():
        if not updates:
            _check(step.job)
        updates.append(_kept(step, contributions))
        size += sum(2 * part.errors.nbytes for part in updates[-1].parts)
        if size > _MOST_BYTES:
            raise UsageError(
                f"{run.folder.path} is too long for the method unrolled: {last:,} updates",
                "Give the method tracin, which keeps nothing of an update",
            )
        if step.record.version == last:
            final = step.after.copy()
    rows = len(run.dataset.train)
    values, counts = np.zeros((rows, targets.count)), np.zeros(rows, np.int64)
    if final is not None:
        with one_blas_thread():
            _way_back(updates, final, targets, contributions, values, counts)
    ignored = ignored_of(updates[-1].job) if updates else ()
    return Influence(values, counts, len(updates), first, ignored)


def _check(job: Job) -> None:
    if job.model != LINEAR:
        raise UsageError(
            f"the method unrolled is for linear models, and this one is {job.model}",
            "Give the method tracin",
        )
    if job.loss != "softmax":
        raise UsageError(
            f"the method unrolled does not go with the loss {job.loss}, whose curvature is all at "
            "its kinks",
            "Give the method tracin",
        )
    if job.optimizer not in _RULES:
        raise UsageError(
            f"the method unrolled does not go with {job.optimizer}, whose steps are not linear in "
            "the gradient",
            "Give the method tracin",
        )


def _kept(step: Step, contributions: Contributions) -> _Update:
    parts = []
    for one in contributions.of(step):
        parts.append(_Part(
            one.lease.version, one.lease.first if one.lease.replicas else None, one.rows,
            one.gradients.errors[0], softmax_probabilities(one.gradients.scores), one.factors,
            one.share, one.rate,
        ))  # fmt: skip
    return _Update(step.record.version, step.job, step.learning_rate, parts)


class _Adjoints:
    """The gradient of each target by W after some updates, where it is not 0.

    Args:
        shape: (targets, classes, columns).
        dtype: of W.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[np.floating]) -> None:
        self._shape, self._dtype = shape, dtype
        self._of: dict[int, Floats] = {}

    def take(self, version: int) -> Floats:
        """That of a version, which nothing adds to any more."""
        self.of(version)
        return self._of.pop(version)

    def of(self, version: int) -> Floats:
        """That of a version, to be added to."""
        if version not in self._of:
            self._of[version] = np.zeros(self._shape, self._dtype)
        return self._of[version]


def _way_back(
    updates: list[_Update], final: Floats, targets: Targets, contributions: Contributions,
    values: NDArray[np.float64], counts: NDArray[np.int64],
) -> None:  # fmt: skip
    """Add up the influences, from the last update to the first."""
    job = updates[-1].job
    (gradient,) = summed(targets.gradients(job, final), targets.shares)
    adjoints = _Adjoints(gradient.shape, gradient.dtype)
    adjoints.of(updates[-1].version)[...] = gradient
    velocity = np.zeros_like(gradient)
    for update in reversed(updates):
        job, rate = update.job, update.rate
        (decay,) = job.architecture.split(job.decay())
        after = adjoints.take(update.version)
        before = adjoints.of(update.version - 1)
        before += after
        if any(part.replica is not None for part in update.parts):
            _rounds(update, after, decay, adjoints, contributions, values, counts)
            continue
        by_gradient, velocity = _through_rule(job, rate, after, velocity)
        before -= decay * by_gradient
        for part in update.parts:
            read = adjoints.of(part.read)
            read -= _through(part, by_gradient, job, contributions, values, counts)


def _through_rule(job: Job, rate: float, after: Floats, velocity: Floats) -> tuple[Floats, Floats]:
    """Minus dL/dg of an update's gradient g, and minus dL/dv of the velocity before it."""
    if job.optimizer == "sgd" or not job.momentum:
        return rate * after, velocity
    if job.optimizer == "momentum":  # v = mu v + g;  W -= rate v
        velocity = velocity + rate * after
        return velocity, job.momentum * velocity
    velocity = velocity + rate * job.momentum * after  # W -= rate (g + mu v)
    return rate * after + velocity, job.momentum * velocity


def _through(
    part: _Part, by_gradient: Floats, job: Job, contributions: Contributions,
    values: NDArray[np.float64], counts: NDArray[np.int64],
) -> Floats:  # fmt: skip
    """Count a contribution; returns what is to be subtracted from dL/dW of the W that it read."""
    count, classes, columns = by_gradient.shape
    features = contributions.features(job, part.rows)
    seen = (features @ by_gradient.reshape(-1, columns).T).reshape(-1, count, classes)
    np.add.at(values, part.rows, part.share * np.einsum("ntc,nc->nt", seen, part.errors))
    np.add.at(counts, part.rows, 1)
    p = part.probabilities[:, None]
    curved = p * (seen - np.sum(p * seen, axis=2, keepdims=True))
    if part.factors is not None:
        curved *= part.factors[:, None, None]
    curved *= curved.dtype.type(part.share)
    moved: Floats = curved.reshape(len(features), -1).T @ features
    return moved.reshape(by_gradient.shape)


def _rounds(
    update: _Update, after: Floats, decay: Floats, adjoints: _Adjoints,
    contributions: Contributions, values: NDArray[np.float64], counts: NDArray[np.int64],
) -> None:  # fmt: skip
    """The same for a round of local steps: W moves by the mean of what its replicas moved.

    A part's share has two factors, that of the replica in the mean and that of the example in the
    replica's minibatch; the first one is in here, once, as ``weight``.
    """
    examples = sum(len(part.rows) for part in update.parts)
    replicas = {part.replica for part in update.parts}
    for replica in replicas:
        own = [part for part in update.parts if part.replica == replica]
        weight = sum(len(part.rows) for part in own) / examples
        start = adjoints.of(own[0].read)
        start -= weight * after
        moving = weight * after
        for part in reversed(own):
            by_gradient = part.rate * moving
            inside = _Part(part.read, part.replica, part.rows, part.errors, part.probabilities,
                           part.factors, part.share / weight, part.rate)  # fmt: skip
            moving = moving - decay * by_gradient
            moving -= _through(inside, by_gradient, update.job, contributions, values, counts)
        start += moving
