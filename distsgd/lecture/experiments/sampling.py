"""How minibatches are chosen: in order, drawn with replacement, or shuffled and then in order."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.plan import Plan
from distsgd.data.dataset import Dataset, open_dataset
from distsgd.data.shards import write_dataset
from distsgd.data.split import Split
from distsgd.lecture.drawing import new_figure
from distsgd.lecture.material import check_limit, train_for_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from distsgd.core.arrays import Bytes, Ints

__all__ = [
    "NEVER_SEEN",
    "SamplingRow",
    "Samplings",
    "compare_samplings",
    "draw_samplings",
    "never_seen_share",
    "write_sorted_dataset",
]  # fmt: skip

NEVER_SEEN = exp(-1)
"""(1 - 1/N)**N for large N: the share of examples that N draws with replacement miss."""


@dataclass(frozen=True, kw_only=True)
class SamplingRow:
    """One way to choose.

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
    )


def _sorted(split: Split) -> tuple[Bytes, Ints]:
    order = np.argsort(split.labels, kind="stable")
    pixels = np.concatenate([part for part, _ in split.batches()])
    return pixels[order], split.labels[order]


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
    """Train with minibatches chosen in each of the ways, and count what each of them misses.

    Args:
        dataset: what to train on.
        loss: "softmax" or "svm".
        epochs: of each run.
        batch_size: of each run.
        workers: worker processes; 0 for this process.
        seed: of every run.
        say: told what is going on.

    Raises:
        UsageError: an argument cannot be used, or a minibatch is larger than the set.
    """
    opened = open_dataset(dataset)
    check_limit("--epochs", epochs, 10_000)
    check_limit("--batch-size", batch_size, len(opened.train))
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


def draw_samplings(found: Samplings) -> Figure:
    """Test accuracy after each epoch, and the share of examples never seen in one."""
    figure = new_figure(8, 3.8)
    accuracy, missed = figure.subplots(1, 2, width_ratios=(3, 2))
    for number, row in enumerate(found.rows):
        epochs = range(1, len(row.test_accuracy) + 1)
        percents = [100 * share for share in row.test_accuracy]
        accuracy.plot(epochs, percents, "o-", label=row.name, color=f"C{number}")
        missed.barh(number, 100 * row.never_seen, color=f"C{number}")
        missed.text(100 * row.never_seen + 1, number, f"{row.never_seen:.1%}", va="center")
    accuracy.set(xlabel="epochs", ylabel="test accuracy, %")
    accuracy.grid(alpha=0.3)
    accuracy.legend(fontsize=8)
    names = [row.name.replace(", ", ",\n") for row in found.rows]
    missed.set(
        yticks=range(len(names)), yticklabels=names, xlim=(0, 50),
        xlabel="never seen in an epoch, %",
    )  # fmt: skip
    return figure
