"""The rows of W as images: what each class, or each hidden unit, looks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distsgd.runs.checkpoint import Model, checkpoint_path, read_checkpoint
from distsgd.runs.folder import RunFolder

__all__ = ["MOST_TEMPLATES", "template_names", "templates", "templates_of"]

MOST_TEMPLATES = 100
"""Units that are shown; a hidden layer may have more."""


def templates(folder: Path | str | RunFolder, version: int) -> NDArray[np.uint8] | None:
    """The rows of W of a checkpoint as images; of two layers, those of W1.

    The weights of a row are mapped to 0 ... 255 by one straight line, so that the least is 0 and
    the largest 255; the bias is left out.

    Args:
        folder: the run folder.
        version: of the checkpoint.

    Returns:
        shape (units, height, width, channels), at most `MOST_TEMPLATES` units; None if the
        examples are not images.

    Raises:
        RunError: there is no such checkpoint, or it is damaged.
        StorageError: the machine cannot read it.
    """
    run = folder if isinstance(folder, RunFolder) else RunFolder(Path(folder))
    return templates_of(read_checkpoint(checkpoint_path(run.checkpoints, version)))


def templates_of(model: Model) -> NDArray[np.uint8] | None:
    """The same of a model in memory."""
    shape = model.shape
    if model.columns is not None or len(shape) != 3 or shape[0] not in (1, 3):
        return None
    layer = model.architecture.layers[0]
    rows = model.weights.ravel()[: layer.outputs * (layer.inputs + 1)]
    units = rows.reshape(layer.outputs, layer.inputs + 1)[:MOST_TEMPLATES, :-1].astype(np.float64)
    low, high = units.min(axis=1, keepdims=True), units.max(axis=1, keepdims=True)
    shades = np.rint(255 * (units - low) / np.maximum(high - low, 1e-300)).astype(np.uint8)
    return np.ascontiguousarray(shades.reshape(-1, *shape).transpose(0, 2, 3, 1))


def template_names(model: str, classes: list[str], units: int) -> list[str]:
    """What the templates are of: the classes, or numbered hidden units.

    Args:
        model: such as "linear".
        classes: their names.
        units: how many templates there are.
    """
    if model == "linear":
        return list(classes[:units])
    return [f"unit {number}" for number in range(1, units + 1)]
