"""Loss and accuracy of a model on a dataset, and a low-priority thread to compute them in."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Ints, Values
from distsgd.core.model import Mistake, SurestMistakes, measure
from distsgd.data.conversion import Conversion
from distsgd.data.dataset import Dataset
from distsgd.data.split import Split
from distsgd.data.system import OWN_THREAD
from distsgd.engine.blas import one_blas_thread
from distsgd.runs import Model

__all__ = ["Background", "Measured", "chosen_batches", "conversion_for", "measure_split"]


@dataclass(frozen=True, eq=False)
class Measured:
    """Loss and accuracy of a model on some examples.

    Attributes:
        loss: mean L_i plus the penalty.
        penalty: lambda * sum of W**2.
        accuracy: share of examples whose largest score is that of their label.
        confusion: shape (classes, classes): rows the true class, columns the one found.
        mistakes: examples of the wrong class, the surest first.
    """

    loss: float
    penalty: float
    accuracy: float
    confusion: Ints
    mistakes: tuple[Mistake, ...] = ()


def conversion_for(model: Model, dataset: Dataset) -> Conversion:
    """How examples of a dataset become inputs of a model.

    Raises:
        UsageError: they do not fit, see `Conversion`.
    """
    return Conversion(
        model.shape, model.classes, model.columns, dataset.manifest, dataset.folder
    )  # fmt: skip


def measure_split(
    model: Model,
    dataset: Dataset,
    split: str,
    regularization: float,
    *,
    rows: NDArray[np.int64] | None = None,
    surest: bool = False,
) -> Measured:
    """Measure a model on the "train" or "test" examples of a dataset.

    Args:
        model: the classifier.
        dataset: the examples.
        split: which of them.
        regularization: lambda.
        rows: numbers of the examples to measure it on; None for all.
        surest: whether to find the surest mistakes.

    Raises:
        UsageError: the dataset does not fit the model, see `Conversion`.
    """
    conversion = conversion_for(model, dataset)
    examples = dataset.train if split == "train" else dataset.test
    weights = model.padded()
    chosen = examples.batches() if rows is None else chosen_batches(examples, rows, dataset)
    batches = conversion.batches(chosen)
    mistakes = SurestMistakes() if surest else None
    found, confusion = measure(
        model.architecture, weights, model.loss, model.preprocessing, batches, mistakes
    )
    extra = model.architecture.penalty(weights, regularization)
    count = max(1, found.examples)
    loss, accuracy = found.loss / count + extra, found.correct / count
    return Measured(loss, extra, accuracy, confusion, tuple(mistakes.found() if mistakes else ()))


_TOGETHER = 1024
"""Examples that are gathered at once."""


def chosen_batches(
    split: Split, rows: NDArray[np.int64], dataset: Dataset
) -> Iterator[tuple[Values, Ints]]:
    """Some examples of a split, as `Split.batches` yields all."""
    for low in range(0, len(rows), _TOGETHER):
        part = rows[low : low + _TOGETHER]
        pixels = np.empty((len(part), dataset.manifest.features), split.dtype)
        split.gather(part, pixels)
        yield pixels, split.labels_of(part)


_NICE = 19

Result = TypeVar("Result")


class Background:
    """Runs one function at a time at the lowest priority, for a caller that waits.

    The priority is the thread's own (Linux), since a process that has lowered its own may not
    raise it again.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, OWN_THREAD, _step_back)

    def run(self, what: Callable[[], Result]) -> Result:
        """Call ``what`` in the thread; returns or raises what it does."""

        def work() -> Result:
            with one_blas_thread(check_at_end=False):
                return what()

        return self._thread.submit(work).result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


def _step_back() -> None:
    with suppress(OSError):  # the thread then keeps the usual priority
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
