"""Loss and confusion matrix of parameters on any examples."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from distsgd.core.arrays import Bytes, Floats, Ints
from distsgd.core.model.architecture import Architecture
from distsgd.core.model.features import Preprocessing
from distsgd.core.model.losses import LOSSES
from distsgd.core.model.slot_gradient import SlotLoss

__all__ = ["measure"]

_BLOCKS = 4
"""How many blocks of rows to make features of at once."""


def measure(
    model: Architecture,
    weights: Floats,
    loss: str,
    preprocessing: Preprocessing,
    batches: Iterable[tuple[Bytes, Ints]],
) -> tuple[SlotLoss, Ints]:
    """Loss and confusion matrix on batches of (pixels, labels).

    Args:
        model: what the parameters are of.
        weights: flat parameters, shape (parameters,).
        loss: "softmax" or "svm".
        preprocessing: from pixels to features.
        batches: pixels of shape (examples, features) and labels of shape (examples,).

    Returns:
        the loss over all batches, and counts of shape (classes, classes): entry [a, b] counts
        the examples of class a whose largest score is that of class b.
    """
    classes = model.classes
    confusion = np.zeros((classes, classes), dtype=np.int64)
    total, examples = 0.0, 0
    rows = model.block * _BLOCKS
    features = preprocessing.buffer(rows, weights.dtype.name)
    scores = np.empty((rows, classes), dtype=weights.dtype)
    for pixels, labels in batches:
        for low in range(0, len(labels), rows):
            part, truth = pixels[low : low + rows], labels[low : low + rows]
            preprocessing.fill(part, features[: len(part)])
            found = model.score(weights, features[: len(part)], scores[: len(part)])
            np.add.at(confusion, (truth.astype(np.intp), found.argmax(axis=1)), 1)
            total += float(LOSSES[loss](found, truth, np.empty_like(found)).sum(dtype=np.float64))
            examples += len(truth)
    return SlotLoss(total, int(np.trace(confusion)), examples), confusion
