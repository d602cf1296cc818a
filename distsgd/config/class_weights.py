"""The setting `class_weight`: from its text and a dataset to the factors of examples.

An example's loss and gradient are multiplied by its factor: the weight of its row times the weight
of its class, divided by the mean of these products over the rows that are trained on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.data.text_files import escaped, nearest, some_of
from distsgd.errors import UsageError
from distsgd.spelling import spelling

if TYPE_CHECKING:  # settings are read without Arrow
    from distsgd.data.dataset import Dataset

__all__ = ["BALANCED", "NONE", "Factors", "class_weights", "factors_of", "text_of"]

NONE, BALANCED = "none", "balanced"

_MOST = 1e30
_PAIR = re.compile(r"(.+?)=([^=,]*)(?:,|$)")


def class_weights(text: str) -> dict[str, float]:
    """The weights of the classes that a text names, such as "cat=2,dog=0.5"; none without names.

    Raises:
        ValueError: it is neither `NONE`, `BALANCED`, nor such a text, or a weight is negative, no
            finite number or given twice.
    """
    found: dict[str, float] = {}
    if text in (NONE, BALANCED):
        return found
    place = 0
    while place < len(text):
        pair = _PAIR.match(text, place)
        if pair is None:
            raise ValueError
        name, weight = pair[1].strip(), float(pair[2])
        if not 0 <= weight <= _MOST or name in found:
            raise ValueError
        found[name], place = weight, pair.end()
    if not found or text.endswith(","):
        raise ValueError
    return found


def text_of(weights: Mapping[object, object]) -> str:
    """The text of the setting for a dictionary of class -> weight."""
    return ",".join(f"{name}={weight}" for name, weight in weights.items())


class Factors(NamedTuple):
    """What the factors of examples are made of.

    Attributes:
        classes: of each class, so that row weight times class factor is the factor of an example;
            empty if the classes count alike.
        mean: by which row weights are divided if ``classes`` is empty.
        largest: of an example, where it was asked for and examples do not count alike.
    """

    classes: tuple[float, ...] = ()
    mean: float = 1.0
    largest: float | None = None


def factors_of(
    text: str, dataset: Dataset, held_out: NDArray[np.int64], *, largest: bool = False
) -> Factors:
    """The factors of the training examples of a dataset.

    "balanced" weighs a class by rows / (classes * rows of the class), as scikit-learn does.

    Args:
        text: the setting `class_weight`.
        dataset: what is trained on.
        held_out: the training rows that are held out for validation.
        largest: whether to find the largest factor.

    Raises:
        UsageError: the text names a class that is not there; all weights are 0; or the labels are
            on this machine only in part.
        CorruptDataError: a shard of the training set is not what the manifest says.
    """
    manifest, split = dataset.manifest, dataset.train
    mean = manifest.mean_weight or 1.0
    if text == NONE and (manifest.mean_weight is None or not largest):
        return Factors(mean=mean)
    if text == NONE:
        weights = np.delete(np.asarray(split.weights, dtype=np.float64), held_out)
        return Factors(mean=mean, largest=float((weights / mean).max()))
    if dataset.streamed:
        raise UsageError(
            f"{spelling().given('class_weight', text)} does not go with "
            f"{spelling().given('shuffle', 'shard')} of a remote dataset: it needs all labels",
            f"Give {spelling().given('shuffle', 'global')}",
        )
    labels = np.delete(split.labels, held_out)
    weights = np.ones(len(labels)) if split.weights is None else np.delete(split.weights, held_out)
    own = _balanced(labels, manifest.classes) if text == BALANCED else _named(text, dataset)
    # Both sums go from first to last: they have the same bits on every machine.
    sums = np.bincount(labels, weights.astype(np.float64), len(own)).tolist()
    total = 0.0
    for one, weight in zip(own, sums, strict=True):
        total += one * weight
    if not total > 0:
        raise UsageError(
            f"{spelling().given('class_weight', text)} leaves no training example that counts",
            "Give a class that has examples a weight above 0",
        )
    norm = total / len(labels)
    classes = tuple(one / norm for one in own)
    most = float((weights * np.array(classes)[labels]).max()) if largest else None
    return Factors(classes, largest=most)


def _balanced(labels: NDArray[np.integer[Any]], classes: tuple[str, ...]) -> list[float]:
    """A class without rows has weight 1, which nothing is multiplied by."""
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    return [len(labels) / (len(classes) * count) if count else 1.0 for count in counts]


def _named(text: str, dataset: Dataset) -> list[float]:
    """The weights that the text gives, and 1 for the other classes."""
    weights, classes = class_weights(text), dataset.manifest.classes
    for name in weights:
        if name not in classes:
            near = nearest(name, classes)
            raise UsageError(
                f"{spelling().given('class_weight', text)}: {dataset.manifest.name} has no class "
                f"{escaped(name)}",
                f"Did you mean {escaped(near)}?" if near else f"It has {some_of(classes)}",
            )
    return [weights.get(name, 1.0) for name in classes]
