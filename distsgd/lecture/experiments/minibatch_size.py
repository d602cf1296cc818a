"""What the size of a minibatch does to speed and to accuracy; powers of two and their neighbours.

Source: CS231n notes, "Optimization": sizes are usually powers of two, for the sake of vectorised
operations; they are hardly ever chosen by cross-validation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from distsgd.data.dataset import open_dataset
from distsgd.errors import UsageError
from distsgd.lecture.drawing import new_figure
from distsgd.lecture.material import Trained, check_limit, train_for_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SIZES", "MinibatchSizes", "SizeRow", "compare_sizes", "draw_sizes", "is_power_of_two"]

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
    """Train with minibatches of each size, the sizes taking turns.

    Args:
        dataset: what to train on.
        loss: "softmax" or "svm".
        sizes: of the minibatches.
        epochs: passes of each run.
        repeats: runs of each size; half of them, the odd ones, with the learning rate scaled.
        workers: worker processes; 0 for this process.
        seed: of every run.
        say: told what is going on.

    Raises:
        UsageError: an argument cannot be used, or a minibatch is larger than the set.
    """
    examples = len(open_dataset(dataset).train)
    if not sizes:
        raise UsageError("--sizes is empty", "Give sizes of minibatches, as 16,64,256")
    check_limit("--epochs", epochs, 10_000)
    check_limit("--repeats", repeats, 1_000, least=2)
    for size in sizes:
        check_limit("--sizes", size, examples)
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
    rows = tuple(_row(size, found) for size, found in runs.items())
    return MinibatchSizes(loss=loss, epochs=epochs, workers=workers, rows=rows)


def _row(size: int, runs: Sequence[Trained]) -> SizeRow:
    return SizeRow(
        batch_size=size,
        steps=runs[0].result.steps,
        examples_per_second=median(run.result.examples_per_second for run in runs),
        test_accuracy=runs[0].result.test_accuracy,
        scaled_test_accuracy=runs[1].result.test_accuracy,
    )


def draw_sizes(found: MinibatchSizes) -> Figure:
    """Throughput and test accuracy against the size; neighbours of powers of two are hollow."""
    figure = new_figure(8, 3.6)
    speed, accuracy = figure.subplots(1, 2)
    sizes = [row.batch_size for row in found.rows]
    speed.plot(sizes, [row.examples_per_second / 1000 for row in found.rows], color="C0", zorder=1)
    for row in found.rows:
        speed.plot(
            row.batch_size, row.examples_per_second / 1000, "o", color="C0",
            markerfacecolor="C0" if is_power_of_two(row.batch_size) else "white",
        )  # fmt: skip
    speed.set(xlabel="minibatch size", ylabel="thousand images/s", ylim=(0, None))
    accuracy.plot(
        sizes, [100 * row.test_accuracy for row in found.rows], "o-", color="C1",
        label="same learning rate",
    )  # fmt: skip
    accuracy.plot(
        sizes, [100 * row.scaled_test_accuracy for row in found.rows], "s--", color="C2",
        label="learning rate ∝ size",
    )  # fmt: skip
    accuracy.set(xlabel="minibatch size", ylabel=f"test accuracy, %, {found.epochs} epochs")
    accuracy.legend()
    for axes in (speed, accuracy):
        axes.set_xscale("log", base=2)
        powers = [size for size in sizes if is_power_of_two(size)]
        axes.set_xticks(powers, [str(size) for size in powers], fontsize=8)
        axes.grid(alpha=0.3)
    return figure
