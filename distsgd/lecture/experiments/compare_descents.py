"""Gradient descent, minibatches, single examples: the same service, three sizes of minibatch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distsgd.data.dataset import open_dataset
from distsgd.errors import UsageError
from distsgd.lecture.drawing import new_figure
from distsgd.lecture.material import check_limit, train_for_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Descent", "DescentPoint", "Descents", "compare_descents", "draw_descents"]

_RATES = {"softmax": {"full": 0.02, "256": 0.015, "1": 0.0002},
          "svm": {"full": 0.002, "256": 0.001, "1": 0.00002}}  # fmt: skip
"""Learning rates: a gradient of fewer examples is noisier, and asks for shorter steps."""


@dataclass(frozen=True, kw_only=True)
class DescentPoint:
    """Where a descent has come to.

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
    """One way to go down.

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
    """Train with steps of all examples, of some, and of one, for as many epochs.

    Args:
        dataset: what to train on.
        loss: "softmax" or "svm".
        epochs: passes over the training set for each.
        workers: worker processes; 0 for this process.
        seed: of the first W and of the order of examples.
        batch_sizes: the sizes to compare.
        say: told what is going on.

    Raises:
        UsageError: an argument cannot be used.
    """
    if loss not in _RATES:
        raise UsageError(f"--loss cannot be {loss}", f"Give one of {', '.join(_RATES)}")
    check_limit("--epochs", epochs, 10_000)
    examples = len(open_dataset(dataset).train)
    found = []
    for wanted in batch_sizes:
        size = examples if wanted == "full" else check_limit("--sizes", int(wanted), examples)
        say(f"minibatches of {size:,}: {epochs * -(-examples // size):,} steps")
        found.append(_descend(dataset, loss, epochs, workers, seed, str(wanted), size))
    return Descents(loss=loss, epochs=epochs, workers=workers, descents=tuple(found))


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


def draw_descents(found: Descents) -> Figure:
    """Test accuracy against epochs, and against seconds."""
    figure = new_figure(8, 3.8)
    by_epoch, by_second = figure.subplots(1, 2, sharey=True)
    for descent in found.descents:
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
