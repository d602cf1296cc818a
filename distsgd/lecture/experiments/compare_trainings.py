"""Trainings compared: sizes of minibatches, and how minibatches are chosen.

- `compare_descents`: gradient descent, minibatches and single examples.
- `compare_sizes`: speed and accuracy by size, powers of two and their neighbours.
- `compare_samplings`: in order, drawn with replacement, or shuffled and then in order.

Source: CS231n notes, "Optimization", minibatch gradient descent: sizes are usually powers of two,
for the sake of vectorised operations; they are hardly ever chosen by cross-validation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.plan import Plan
from distsgd.data.dataset import Dataset, open_dataset
from distsgd.data.shards import write_dataset
from distsgd.data.split import Split
from distsgd.errors import UsageError
from distsgd.figures.drawn import new_figure
from distsgd.lecture.material import Trained, check_limit, check_loss, train_for_study
from distsgd.spelling import spelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from distsgd.core.arrays import Ints, Values

__all__ = [
    "NEVER_SEEN",
    "SIZES",
    "Descent",
    "DescentPoint",
    "Descents",
    "MinibatchSizes",
    "SamplingRow",
    "Samplings",
    "SizeRow",
    "compare_descents",
    "compare_samplings",
    "compare_sizes",
    "draw_descents",
    "draw_samplings",
    "draw_sizes",
    "is_power_of_two",
    "never_seen_share",
    "write_sorted_dataset",
]


_RATES = {"softmax": {"full": 0.02, "256": 0.015, "1": 0.0002},
          "svm": {"full": 0.002, "256": 0.001, "1": 0.00002}}  # fmt: skip
"""Learning rates: a gradient of fewer examples is noisier and needs shorter steps."""


@dataclass(frozen=True, kw_only=True)
class DescentPoint:
    """The state of a descent after an epoch.

    Attributes:
        epoch: passes over the training set so far.
        seconds: spent on steps so far.
        test_loss: of W, with the penalty.
        test_accuracy: of W.
    """

    epoch: int
    seconds: float
    test_loss: float
    test_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Descent:
    """One descent.

    Attributes:
        name: "full", "256" or "1".
        batch_size: examples of a step.
        learning_rate: of the first step.
        steps: all of them.
        examples_per_second: while it trained.
        points: one for each epoch.
    """

    name: str
    batch_size: int
    learning_rate: float
    steps: int
    examples_per_second: float
    points: tuple[DescentPoint, ...]


@dataclass(frozen=True, kw_only=True)
class Descents:
    """The comparison.

    Attributes:
        loss: "softmax" or "svm".
        epochs: passes of each.
        workers: of the service.
        descents: from all examples to one.
    """

    loss: str
    epochs: int
    workers: int
    descents: tuple[Descent, ...]


def compare_descents(
    dataset: str = "cifar10",
    *,
    loss: str = "softmax",
    epochs: int = 5,
    workers: int = 0,
    seed: int = 0,
    batch_sizes: Sequence[int | str] = ("full", 256, 1),
    say: Callable[[str], None] = lambda text: None,
) -> Descents:
    """Train with all examples, some, and one in a step, for the same number of epochs.

    Args:
        dataset: what to train on.
        loss: "softmax" or "svm".
        epochs: passes over the training set for each.
        workers: worker processes; 0 for this process.
        seed: of the first W and of the order of examples.
        batch_sizes: the sizes to compare.
        say: called with messages about progress.

    Raises:
        UsageError: an argument cannot be used.
    """
    check_loss(loss)
    check_limit("epochs", epochs, 10_000)
    examples = len(open_dataset(dataset).train)
    result = []
    for wanted in batch_sizes:
        size = examples if wanted == "full" else check_limit("sizes", int(wanted), examples)
        say(f"minibatches of {size:,}: {epochs * -(-examples // size):,} steps")
        result.append(_descend(dataset, loss, epochs, workers, seed, str(wanted), size))
    return Descents(loss=loss, epochs=epochs, workers=workers, descents=tuple(result))


def _descend(
    dataset: str, loss: str, epochs: int, workers: int, seed: int, name: str, size: int
) -> Descent:
    rate = _RATES[loss].get(name) or _RATES[loss]["256"] * (size / 256) ** 0.5
    trained = train_for_study(
        dataset, loss=loss, epochs=epochs, workers=workers, seed=seed, batch_size=size,
        learning_rate=rate,
    )  # fmt: skip
    return Descent(
        name=name, batch_size=size, learning_rate=rate, steps=trained.result.steps,
        examples_per_second=trained.result.examples_per_second,
        points=tuple(
            DescentPoint(
                epoch=row.epoch, seconds=row.seconds,
                test_loss=row.test_loss, test_accuracy=row.test_accuracy,
            )
            for row in trained.epochs
        ),
    )  # fmt: skip


def draw_descents(result: Descents) -> Figure:
    """Test accuracy against epochs, and against seconds."""
    figure = new_figure(8, 3.8)
    by_epoch, by_second = figure.subplots(1, 2, sharey=True)
    for descent in result.descents:
        label = "all examples" if descent.name == "full" else f"{descent.batch_size:,} a step"
        accuracy = [100 * point.test_accuracy for point in descent.points]
        by_epoch.plot([point.epoch for point in descent.points], accuracy, "o-", label=label)
        by_second.plot([point.seconds for point in descent.points], accuracy, "o-", label=label)
    by_epoch.set(xlabel="epochs", ylabel="test accuracy, %")
    by_second.set(xlabel="seconds of training", xscale="log")
    by_epoch.legend(loc="lower right")
    for axes in (by_epoch, by_second):
        axes.grid(alpha=0.3)
    return figure


SIZES = (16, 32, 64, 100, 128, 200, 256, 512, 1024)


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """One size.

    Attributes:
        batch_size: examples of a minibatch.
        steps: updates in all.
        examples_per_second: median over the repeats.
        test_accuracy: at the end, the learning rate being the same for all sizes.
        scaled_test_accuracy: at the end, the learning rate being proportional to the size.
    """

    batch_size: int
    steps: int
    examples_per_second: float
    test_accuracy: float
    scaled_test_accuracy: float


@dataclass(frozen=True, kw_only=True)
class MinibatchSizes:
    """The comparison.

    Attributes:
        loss: "softmax" or "svm".
        epochs: passes of each run.
        workers: of the service.
        rows: one for each size.
    """

    loss: str
    epochs: int
    workers: int
    rows: tuple[SizeRow, ...]


def is_power_of_two(number: int) -> bool:
    """Whether a number is 1, 2, 4, 8, ..."""
    return number > 0 and number & (number - 1) == 0


def compare_sizes(
    dataset: str = "cifar10",
    *,
    loss: str = "softmax",
    sizes: Sequence[int] = SIZES,
    epochs: int = 3,
    repeats: int = 2,
    workers: int = 0,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> MinibatchSizes:
    """Train with minibatches of each size, interleaved.

    Args:
        dataset: what to train on.
        loss: "softmax" or "svm".
        sizes: of the minibatches.
        epochs: passes of each run.
        repeats: runs of each size; every second one scales the learning rate.
        workers: worker processes; 0 for this process.
        seed: of every run.
        say: called with messages about progress.

    Raises:
        UsageError: an argument cannot be used, or a minibatch is larger than the set.
    """
    examples = len(open_dataset(dataset).train)
    if not sizes:
        raise UsageError(f"{spelled('sizes')} is empty", "Give sizes of minibatches, as 16,64,256")
    check_limit("epochs", epochs, 10_000)
    check_limit("repeats", repeats, 1_000, least=2)
    for size in sizes:
        check_limit("sizes", size, examples)
    runs: dict[int, list[Trained]] = {size: [] for size in sizes}
    for repeat in range(repeats):
        for size in sizes:
            say(f"minibatches of {size}, run {repeat + 1} of {repeats}")
            rate = {} if repeat % 2 == 0 else {"scale_lr": True, "warmup_epochs": 0.0}
            runs[size].append(
                train_for_study(
                    dataset, loss=loss, epochs=epochs, workers=workers, seed=seed,
                    batch_size=size, **rate,
                )
            )  # fmt: skip
    rows = tuple(_row(size, result) for size, result in runs.items())
    return MinibatchSizes(loss=loss, epochs=epochs, workers=workers, rows=rows)


def _row(size: int, runs: Sequence[Trained]) -> SizeRow:
    return SizeRow(
        batch_size=size,
        steps=runs[0].result.steps,
        examples_per_second=median(run.result.examples_per_second for run in runs),
        test_accuracy=runs[0].result.test_accuracy,
        scaled_test_accuracy=runs[1].result.test_accuracy,
    )


def draw_sizes(result: MinibatchSizes) -> Figure:
    """Throughput and test accuracy against the size; neighbours of powers of two are hollow."""
    figure = new_figure(8, 3.6)
    speed, accuracy = figure.subplots(1, 2)
    sizes = [row.batch_size for row in result.rows]
    speed.plot(sizes, [row.examples_per_second / 1000 for row in result.rows], color="C0", zorder=1)
    for row in result.rows:
        speed.plot(
            row.batch_size, row.examples_per_second / 1000, "o", color="C0",
            markerfacecolor="C0" if is_power_of_two(row.batch_size) else "white",
        )  # fmt: skip
    speed.set(xlabel="minibatch size", ylabel="thousand images/s", ylim=(0, None))
    accuracy.plot(
        sizes, [100 * row.test_accuracy for row in result.rows], "o-", color="C1",
        label="same learning rate",
    )  # fmt: skip
    accuracy.plot(
        sizes, [100 * row.scaled_test_accuracy for row in result.rows], "s--", color="C2",
        label="learning rate ∝ size",
    )  # fmt: skip
    accuracy.set(xlabel="minibatch size", ylabel=f"test accuracy, %, {result.epochs} epochs")
    accuracy.legend()
    for axes in (speed, accuracy):
        axes.set_xscale("log", base=2)
        powers = [size for size in sizes if is_power_of_two(size)]
        axes.set_xticks(powers, [str(size) for size in powers], fontsize=8)
        axes.grid(alpha=0.3)
    return figure


NEVER_SEEN = exp(-1)
"""(1 - 1/N)**N for large N: the share of examples that N draws with replacement miss."""


@dataclass(frozen=True, kw_only=True)
class SamplingRow:
    """One way to choose minibatches.

    Attributes:
        name: "sequential", "sequential, sorted by class", "random" or "shuffle".
        never_seen: share of the examples that are in no minibatch of an epoch; mean over epochs.
        most_often: how often the most frequent example of an epoch occurs.
        test_accuracy: after each epoch.
    """

    name: str
    never_seen: float
    most_often: int
    test_accuracy: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Samplings:
    """The comparison.

    Attributes:
        loss: "softmax" or "svm".
        epochs: of each run.
        batch_size: of each run.
        rows: one for each way.
    """

    loss: str
    epochs: int
    batch_size: int
    rows: tuple[SamplingRow, ...]


def never_seen_share(plan: Plan, epoch: int) -> tuple[float, int]:
    """The share of examples that an epoch misses, and how often its most frequent one occurs."""
    counts = np.bincount(plan.order(epoch), minlength=plan.examples)
    return float(np.mean(counts == 0)), int(counts.max())


def write_sorted_dataset(dataset: Dataset, folder: Path) -> None:
    """Write the same examples again, sorted by class: all airplanes first, then all cars."""
    write_dataset(
        folder,
        name=f"{dataset.manifest.name}-sorted",
        shape=dataset.manifest.shape,
        classes=dataset.manifest.classes,
        train=_sorted(dataset.train),
        test=_sorted(dataset.test),
        shards=len(dataset.manifest.train),
        columns=dataset.manifest.columns,
    )


def _sorted(split: Split) -> tuple[Values, Ints]:
    order = np.argsort(split.labels, kind="stable")
    rows = np.concatenate([part for part, _ in split.batches()])
    return rows[order], split.labels[order]


def compare_samplings(
    dataset: str = "cifar10",
    *,
    loss: str = "softmax",
    epochs: int = 5,
    batch_size: int = 256,
    workers: int = 0,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Samplings:
    """Train with minibatches chosen in each way, and count the examples that each misses.

    Args:
        dataset: what to train on.
        loss: "softmax" or "svm".
        epochs: of each run.
        batch_size: of each run.
        workers: worker processes; 0 for this process.
        seed: of every run.
        say: called with messages about progress.

    Raises:
        UsageError: an argument cannot be used, or a minibatch is larger than the set.
    """
    opened = open_dataset(dataset)
    check_limit("epochs", epochs, 10_000)
    check_limit("batch_size", batch_size, len(opened.train))
    rows = []
    with tempfile.TemporaryDirectory(prefix="distsgd-sorted-") as folder:
        write_sorted_dataset(opened, Path(folder))
        for name, sampling, source in (
            ("sequential, sorted by class", "sequential", folder),
            ("sequential", "sequential", dataset),
            ("random", "random", dataset),
            ("shuffle", "shuffle", dataset),
        ):
            say(f"minibatches: {name}")
            plan = Plan(
                seed=seed, sampling=sampling, examples=len(opened.train),
                batch_size=batch_size, slot_size=batch_size, epochs=epochs,
            )  # fmt: skip
            seen = [never_seen_share(plan, epoch) for epoch in range(epochs)]
            trained = train_for_study(
                source, loss=loss, epochs=epochs, batch_size=batch_size, workers=workers,
                seed=seed, sampling=sampling,
            )  # fmt: skip
            rows.append(
                SamplingRow(
                    name=name,
                    never_seen=float(np.mean([share for share, _ in seen])),
                    most_often=max(most for _, most in seen),
                    test_accuracy=tuple(row.test_accuracy for row in trained.epochs),
                )
            )
    return Samplings(loss=loss, epochs=epochs, batch_size=batch_size, rows=tuple(rows))


def draw_samplings(result: Samplings) -> Figure:
    """Test accuracy after each epoch, and the share of examples never seen in one."""
    figure = new_figure(8, 3.8)
    accuracy, missed = figure.subplots(1, 2, width_ratios=(3, 2))
    for number, row in enumerate(result.rows):
        epochs = range(1, len(row.test_accuracy) + 1)
        percents = [100 * share for share in row.test_accuracy]
        accuracy.plot(epochs, percents, "o-", label=row.name, color=f"C{number}")
        missed.barh(number, 100 * row.never_seen, color=f"C{number}")
        missed.text(100 * row.never_seen + 1, number, f"{row.never_seen:.1%}", va="center")
    accuracy.set(xlabel="epochs", ylabel="test accuracy, %")
    accuracy.grid(alpha=0.3)
    accuracy.legend(fontsize=8)
    names = [row.name.replace(", ", ",\n") for row in result.rows]
    missed.set(
        yticks=range(len(names)), yticklabels=names, xlim=(0, 50),
        xlabel="never seen in an epoch, %",
    )  # fmt: skip
    return figure
