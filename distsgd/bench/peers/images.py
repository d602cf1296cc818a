"""The images that all peers train on, and what they have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distsgd.data.dataset import open_dataset

__all__ = ["LEARNING_RATE", "REGULARIZATION", "SCALE", "Images", "load_images"]

SCALE = 64.0
"""What centred pixels are divided by."""

LEARNING_RATE, REGULARIZATION = 0.015, 0.005


@dataclass(frozen=True)
class Images:
    """A split in memory.

    Attributes:
        pixels: shape (examples, features), uint8.
        labels: shape (examples,).
        mean: of each pixel over the training examples, shape (features,), float32.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    mean: NDArray[np.float32]


def load_images(dataset: str, split: str = "train") -> Images:
    """Read a whole split into memory."""
    opened = open_dataset(dataset)
    part = opened.train if split == "train" else opened.test
    pixels = np.concatenate([pixels for pixels, _ in part.batches()])
    return Images(pixels, part.labels.astype(np.int64), opened.pixel_mean.astype(np.float32))
