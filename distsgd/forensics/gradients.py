"""Losses and gradients of chosen training examples at any W, one by one and in the mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats, Ints
from distsgd.core.model import LOSSES
from distsgd.core.model.reference import forward
from distsgd.data.row_cache import open_rows
from distsgd.data.split import Split
from distsgd.engine.job import Job
from distsgd.engine.worker import labels_of

__all__ = ["Examined", "MeanGradient", "cosine", "examine", "mean_gradient", "rows_of"]

_SLOT, _TOGETHER = 64, 1024
"""Examples of a slot, and those that are gathered at once."""

_MOST_NUMBERS = 1 << 22
"""Numbers of the gradients that are in memory at once."""


@dataclass(frozen=True, eq=False)
class Examined:
    """Some examples at one W, each by itself, in float64.

    Attributes:
        losses: L_i, without factors and penalty, shape (examples,).
        guesses: the class with the largest score, shape (examples,).
        gradient_norms: Euclidean norm of dL_i/dW, shape (examples,).
    """

    losses: NDArray[np.float64]
    guesses: NDArray[np.intp]
    gradient_norms: NDArray[np.float64]


def rows_of(split: Split, indices: NDArray[np.int64], features: int) -> NDArray[Any]:
    """The rows of examples as the dataset holds them, shape (examples, features)."""
    rows = np.empty((len(indices), features), dtype=split.dtype)
    split.gather(indices, rows)
    return rows


def examine(job: Job, flat: Floats, rows: NDArray[Any], labels: Ints) -> Examined:
    """Loss, guess and size of the gradient of every example, by the plain formulas.

    dL_i/dW of a layer with inputs h and errors g is g h', whose norm is |g| |h|.

    Args:
        job: has the model and its preprocessing.
        flat: W, flat and padded.
        rows: as the dataset holds them, shape (examples, features).
        labels: of them.
    """
    own = job.architecture.unpad(flat).astype(np.float64)
    layers = job.architecture.split_kept(own)
    parts = [_examined(job, layers, rows[low : low + _TOGETHER], labels[low : low + _TOGETHER])
             for low in range(0, len(rows), _TOGETHER)]  # fmt: skip
    return Examined(*map(np.concatenate, zip(*parts, strict=True)))


def _examined(
    job: Job, layers: list[Floats], rows: NDArray[Any], labels: Ints
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    features = job.preprocessing.buffer(len(rows), "float64")
    job.preprocessing.fill(rows, features)
    inputs, outputs = forward(layers, features[:, : job.features + 1])
    errors = np.empty_like(outputs[-1])
    losses = LOSSES[job.loss](outputs[-1], labels.astype(np.intp), errors)
    squares = np.zeros(len(rows))
    for number in reversed(range(len(layers))):
        squares += (errors**2).sum(axis=1) * (inputs[number] ** 2).sum(axis=1)
        if number:
            errors = np.where(outputs[number - 1] > 0, errors @ layers[number][:, :-1], 0)
    return np.array(losses), outputs[-1].argmax(axis=1), np.sqrt(squares)


@dataclass(frozen=True, eq=False)
class MeanGradient:
    """The mean over some examples, weighted as in the training, without the penalty.

    Attributes:
        gradient: of dL_i/dW, flat and padded, float64.
        loss: of L_i.
        accuracy: share of the examples that are classified as their label.
        examples: how many.
    """

    gradient: NDArray[np.float64]
    loss: float
    accuracy: float
    examples: int


def mean_gradient(
    job: Job, split: Split, flat: Floats, indices: NDArray[np.int64]
) -> MeanGradient:  # fmt: skip
    """The mean gradient of any training examples at any W, a few at a time.

    It is computed by the kernel of the training, but in slots of its own, so that the last bits
    may differ from those of an update.

    Args:
        job: has the model, the loss and the factors of examples.
        split: the training examples.
        flat: W, flat and padded.
        indices: numbers of the examples, at least one.
    """
    slots = max(1, min(_TOGETHER // _SLOT, _MOST_NUMBERS // job.parameters))
    most = slots * _SLOT
    plan = replace(job.plan, slot_size=_SLOT, batch_size=most)
    kernel = replace(job, plan=plan).kernel()
    rows = open_rows(split, job.preprocessing, "shards", most)
    out = np.empty((slots, job.parameters), dtype=job.dtype)
    total = np.zeros(job.parameters)
    loss, correct = 0.0, 0
    whole = len(indices) - len(indices) % _SLOT
    parts = [indices[low : min(low + most, whole)].reshape(-1, _SLOT)
             for low in range(0, whole, most)]  # fmt: skip
    if whole < len(indices):
        parts.append(indices[None, whole:])
    with np.errstate(all="ignore"):
        for part in parts:
            rows.gather(part)
            labels, factors = labels_of(job, split, part)
            own = out[: len(part)]
            for slot in kernel.gradients(flat, labels, own, rows.write, factors):
                loss, correct = loss + slot.loss, correct + slot.correct
            total += np.add.reduce(own, axis=0)
    count = len(indices)
    return MeanGradient(total / count, loss / count, correct / count, count)


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The cosine of the angle between two vectors; NaN if one is 0 or not finite."""
    with np.errstate(all="ignore"):
        lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
        return float(np.dot(one, other) / lengths) if lengths else float("nan")
