"""The examples that a model classifies wrongly and is surest of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats, Ints

__all__ = ["Mistake", "SurestMistakes"]


@dataclass(frozen=True)
class Mistake:
    """An example of the wrong class.

    Attributes:
        index: which, from 0 over all batches.
        label: its class.
        predicted: the class of its largest score.
        probability: softmax of that score. The scores of an SVM are no logarithms of
            probabilities: there it only orders the mistakes.
    """

    index: int
    label: int
    predicted: int
    probability: float


class SurestMistakes:
    """Keeps the surest mistakes of the batches that it is shown.

    Args:
        most: how many.
    """

    def __init__(self, most: int = 24) -> None:
        self._most, self._seen = most, 0
        self._found: list[Mistake] = []
        self._least = -1.0  # probability that is not enough

    def add(self, scores: Floats, labels: Ints, predicted: NDArray[np.intp]) -> None:
        """The next examples.

        Args:
            scores: shape (examples, classes).
            labels: shape (examples,).
            predicted: column of the largest score of each, shape (examples,).
        """
        wrong = np.flatnonzero(predicted != labels)
        first, self._seen = self._seen, self._seen + len(labels)
        if not len(wrong):
            return
        rows = scores[wrong]
        with np.errstate(all="ignore"):
            rows -= scores[wrong, predicted[wrong]][:, None]
            np.exp(rows, out=rows)
            sure = np.nan_to_num(1.0 / rows.sum(axis=1, dtype=np.float64))
        best = np.flatnonzero(sure > self._least)
        if not len(best):
            return
        best = best[np.argsort(-sure[best], kind="stable")[: self._most]]
        self._found += [
            Mistake(first + int(i), int(labels[i]), int(predicted[i]), float(probability))
            for i, probability in zip(wrong[best], sure[best], strict=True)
        ]
        self._found.sort(key=lambda mistake: (-mistake.probability, mistake.index))
        del self._found[self._most :]
        if len(self._found) == self._most:
            self._least = self._found[-1].probability

    def found(self) -> list[Mistake]:
        """The surest first."""
        return list(self._found)
