"""Which training examples a prediction comes from: the most helpful and the most harmful ones."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.core.model import SurestMistakes, measure, softmax_probabilities
from distsgd.data.dataset import Dataset
from distsgd.data.split import Split
from distsgd.data.text_files import nearest, some_of
from distsgd.engine.blas import one_blas_thread
from distsgd.engine.job import Job
from distsgd.errors import UsageError
from distsgd.figures.contact_sheet import Group, Thumbnail, are_images, as_images, contact_sheet
from distsgd.forensics.contributions import features_of_rows
from distsgd.forensics.influence import Influence, Targets, tracin
from distsgd.forensics.unrolled import unrolled
from distsgd.proof.moments import update_of
from distsgd.proof.timeline import Timeline
from distsgd.runs.opened_run import OpenedRun, open_run
from distsgd.spelling import spelling

__all__ = ["METHODS", "Blame", "Cause", "Wrong", "blame", "blame_row", "surest_wrong"]

METHODS = {"tracin": tracin, "unrolled": unrolled}
"""How influence is computed, by name."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A training example, and what it did.

    Attributes:
        example: its number, from 0.
        label: its class.
        influence: by how much it lowered the loss; below 0, by how much it raised it.
        updates: in how many updates it took part.
    """

    example: int
    label: str
    influence: float
    updates: int


@dataclass(frozen=True, kw_only=True)
class Blame:
    """What a prediction, or the loss of a class, comes from.

    Attributes:
        run_dir: the run folder.
        target: what is explained: "test example 17", "class cat", or the name of a file.
        method: "tracin" or "unrolled".
        updates: how many updates were looked at.
        at: the update whose W predicts.
        label: the class whose loss it is.
        predicted: the likeliest class; of a class, that of most of its examples.
        probability: softmax of the score of ``predicted``; of a class, the share of its examples
            with that class.
        loss: L_i at that W; of a class, the mean.
        helpful: the examples of the largest influence, the most helpful first.
        harmful: those of the least, the most harmful first.
        classes: class -> sum of the influences of its training examples.
        ignored: what was left out of account.
        values: influence of each training example, shape (training examples,).
    """

    run_dir: str
    target: str
    method: str
    updates: int
    at: int
    label: str
    predicted: str
    probability: float
    loss: float
    helpful: tuple[Cause, ...]
    harmful: tuple[Cause, ...]
    classes: dict[str, float]
    ignored: tuple[str, ...] = ()
    values: NDArray[np.float64] = field(repr=False, compare=False)
    _dataset: Dataset = field(repr=False, compare=False)
    _pixels: NDArray[Any] | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """All but the influence of each example."""
        content = {name: value for name, value in vars(self).items() if name[0] != "_"}
        del content["values"]
        for name in ("helpful", "harmful"):
            content[name] = [vars(one) for one in content[name]]
        return content

    @property
    def has_images(self) -> bool:
        """Whether there are pictures to be shown."""
        return _has_images(self._dataset)

    def picture(self) -> bytes:
        """A contact sheet: what is explained, the helpful and the harmful images; a PNG.

        Raises:
            UsageError: the examples are no images.
        """
        if not self.has_images:
            raise UsageError(
                f"the examples of {self._dataset.manifest.name} are no images",
                f"Leave out {spelling().setting('out')}: the table has their numbers",
            )
        groups, shape = [], self._dataset.manifest.shape
        if self._pixels is not None:
            caption = f"is {self.label}", f"{self.predicted} {self.probability:.0%}"
            image = as_images(self._pixels.reshape(1, -1), shape)[0]
            own = Thumbnail(image, caption, wrong=self.label != self.predicted)
            groups.append(Group(f"{self.target}: loss {self.loss:.3f}", [own]))
        for heading, causes in (("helpful: training examples that lowered this loss most",
                                 self.helpful),
                                ("harmful: training examples that raised it most",
                                 self.harmful)):  # fmt: skip
            numbers = [one.example for one in causes]
            rows = rows_of(self._dataset.train, numbers, math.prod(shape))
            groups.append(Group(heading, [
                Thumbnail(image, (f"{one.example} {one.label}", f"{one.influence:+.4f}"),
                          wrong=one.influence < 0)
                for one, image in zip(causes, as_images(rows, shape), strict=True)
            ]))  # fmt: skip
        title = f"{Path(self.run_dir).name}: {self.target}, after update {self.at:,}"
        note = f"influence by {self.method} over {self.updates:,} updates"
        return contact_sheet(title, groups, 10, note)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows."""
        return self.picture() if self.has_images else None


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A test example that is classified wrongly.

    Attributes:
        test: its number, from 0.
        label: its class.
        predicted: the likeliest class.
        probability: softmax of the score of ``predicted``.
    """

    test: int
    label: str
    predicted: str
    probability: float


def blame(
    run: str | Path | os.PathLike[str],
    *,
    test: int | None = None,
    of_class: str | None = None,
    method: str = "tracin",
    at: int | str = "last",
    top: int = 10,
) -> Blame:
    """Find the training examples that helped and hurt a test example, or a class of them, most.

    Args:
        run: path or name of a run, "latest", a loaded run.
        test: number of a test example, from 0.
        of_class: a class, whose mean loss over its test examples is explained, in place of one.
        method: "tracin" (`distsgd.forensics.influence`), or "unrolled"
            (`distsgd.forensics.unrolled`), which foretells a retraining better.
        at: the update whose W predicts; see `distsgd.proof.moments.MOMENTS`.
        top: how many examples to name on either side.

    Raises:
        UsageError: there is no such example, class, method or update.
        RunError: there is no such run, or it cannot be recomputed.
    """
    if (test is None) == (of_class is None):
        given = spelling().setting("test"), spelling().setting("of_class")
        raise UsageError("nothing, or too much, to explain", f"Give {given[0]} or {given[1]}")
    opened = open_run(run if isinstance(run, str) else Path(run))
    dataset, classes = opened.dataset, opened.dataset.manifest.classes
    if test is not None:
        check_number("test", test, len(dataset.test), "test", dataset)
        rows, target = np.array([test]), f"test example {test}"
    else:
        number = class_number(str(of_class), dataset)
        rows = np.flatnonzero(dataset.test.labels == number)
        target = f"class {classes[number]}"
        if not len(rows):
            raise UsageError(
                f"{dataset.manifest.name} has no test example of {classes[number]}",
                "Choose another class",
            )
    pixels = rows_of(dataset.test, rows, dataset.manifest.features)
    labels = dataset.test.labels_of(rows)
    found = _explained(opened, pixels, labels, target, method, at, top)
    return found if test is None else replace(found, _pixels=pixels[0])


def blame_row(
    run: OpenedRun,
    row: NDArray[Any],
    name: str,
    *,
    label: str | None = None,
    method: str = "tracin",
    at: int | str = "last",
    top: int = 10,
) -> Blame:
    """The same for a row of the user's own.

    Args:
        run: the run.
        row: as the model takes it, shape (features,).
        name: of the row, such as its file.
        label: the class whose loss is explained; None for the one predicted.
        method: as for `blame`.
        at: likewise.
        top: likewise.
    """
    number = None if label is None else class_number(label, run.dataset)
    pixels, labels = row[None], None if number is None else np.array([number])
    found = _explained(run, pixels, labels, name, method, at, top)
    return replace(found, _pixels=row if row.dtype == np.uint8 else None)


def surest_wrong(run: str | Path, at: int | str = "last", most: int = 10) -> list[Wrong]:
    """The test examples that a run classifies wrongly and is surest of, the surest first.

    Raises:
        UsageError: there is no such update.
        RunError: there is no such run, or it cannot be recomputed.
    """
    opened = open_run(run)
    job, weights, _ = _moment(opened, at)
    mistakes, classes = SurestMistakes(most), opened.dataset.manifest.classes
    with one_blas_thread():
        measure(job.architecture, weights, job.loss, job.preprocessing,
                opened.dataset.test.batches(), mistakes)  # fmt: skip
    return [
        Wrong(test=one.index, label=classes[one.label], predicted=classes[one.predicted],
              probability=one.probability)
        for one in mistakes.found()
    ]  # fmt: skip


def _moment(run: OpenedRun, at: int | str) -> tuple[Job, Floats, int]:
    """The job and flat W after an update, and its number."""
    timeline = Timeline(run)
    moment = timeline.at(update_of(run, at, timeline))
    return run.job(moment.config), moment.snapshot.weights, moment.version


def _explained(
    run: OpenedRun, pixels: NDArray[Any], labels: NDArray[Any] | None, target: str, method: str,
    at: int | str, top: int,
) -> Blame:  # fmt: skip
    """The causes of the mean loss of some rows."""
    if method not in METHODS:
        raise UsageError(
            f"{spelling().setting('method')} cannot be {method}", f"Give {' or '.join(METHODS)}"
        )
    job, weights, version = _moment(run, at)
    dataset, classes = run.dataset, run.dataset.manifest.classes
    features = features_of_rows(job.preprocessing, pixels, job.dtype)
    with one_blas_thread():
        scores = np.empty((len(pixels), len(classes)), job.dtype)
        job.architecture.score(weights, features, scores)
    likeliest = scores.argmax(axis=1)
    if labels is None:
        labels = likeliest[:1]
    targets = Targets.mean(features, labels)
    with one_blas_thread():
        loss = float(targets.gradients(job, weights).losses.mean())
    found = METHODS[method](run, targets, version)
    counts = np.bincount(likeliest, minlength=len(classes))
    predicted = int(counts.argmax())
    sure = softmax_probabilities(scores.astype(np.float64))[0, predicted]
    values, truth = found.values[:, 0], dataset.train.labels
    sums = np.bincount(truth, values, len(classes))
    order = np.argsort(-values, kind="stable")
    order = order[found.counts[order] > 0]
    return Blame(
        run_dir=str(run.folder.path),
        target=target,
        method=method,
        updates=found.updates,
        at=version,
        label=classes[int(labels[0])],
        predicted=classes[predicted],
        probability=float(sure if len(pixels) == 1 else counts[predicted] / len(pixels)),
        loss=loss,
        helpful=_causes([row for row in order[:top] if values[row] > 0], found, dataset),
        harmful=_causes([row for row in order[::-1][:top] if values[row] < 0], found, dataset),
        classes=dict(zip(classes, sums.tolist(), strict=True)),
        ignored=found.ignored,
        values=values,
        _dataset=dataset,
    )


def _causes(rows: Sequence[int], found: Influence, dataset: Dataset) -> tuple[Cause, ...]:
    names, labels = dataset.manifest.classes, dataset.train.labels
    return tuple(
        Cause(example=int(row), label=names[labels[row]], influence=float(found.values[row, 0]),
              updates=int(found.counts[row]))
        for row in rows
    )  # fmt: skip


def rows_of(
    split: Split, rows: Sequence[int] | NDArray[np.integer[Any]], features: int
) -> NDArray[Any]:
    """Rows of a split by number, shape (rows, features)."""
    out = np.empty((len(rows), features), split.dtype)
    split.gather(np.asarray(rows, dtype=np.int64), out)
    return out


def check_number(name: str, number: int, count: int, split: str, dataset: Dataset) -> None:
    """Check that there is an example of a number.

    Raises:
        UsageError: there is not.
    """
    if isinstance(number, bool) or not 0 <= number < count:
        raise UsageError(
            f"{spelling().given(name, number)}: {dataset.manifest.name} has {count:,} {split} "
            "examples, counted from 0",
            f"Give a number up to {count - 1}",
        )


def class_number(name: str, dataset: Dataset) -> int:
    """The number of a class.

    Raises:
        UsageError: there is none of that name.
    """
    classes = dataset.manifest.classes
    if name in classes:
        return classes.index(name)
    near = nearest(name, classes)
    raise UsageError(
        f"{dataset.manifest.name} has no class {name}",
        f"Did you mean {near}?" if near else f"It has {some_of(classes)}",
    )


def _has_images(dataset: Dataset) -> bool:
    manifest = dataset.manifest
    return are_images(manifest.shape) and manifest.columns is None
