"""An open dataset: rows by number, gathered from memory-mapped shards."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Bytes
from distsgd.core.features import Preprocessing
from distsgd.data.manifest import Manifest, Shard, read_manifest
from distsgd.data.shards import checksum, open_shard
from distsgd.errors import CorruptDataError, DatasetError

__all__ = ["Dataset", "Split", "verify_shards"]


class Split:
    """The training or test examples of a dataset.

    Attributes:
        labels: shape (rows,), uint8.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        opened = [
            open_shard(folder / entry.file, entry, manifest) for entry in manifest.shards(split)
        ]
        self._pixels = [pixels for pixels, _ in opened]
        self._starts = np.cumsum([0, *(len(pixels) for pixels in self._pixels)])
        self.labels: Bytes = np.concatenate([labels for _, labels in opened])
        if len(self.labels) and int(self.labels.max()) >= len(manifest.classes):
            raise DatasetError(
                f"the {split} split of {folder} has a label {self.labels.max()}, but only "
                f"{len(manifest.classes)} classes are named",
                "The dataset was written wrongly; fetch it again",
            )

    def __len__(self) -> int:
        return len(self.labels)

    def in_memory(self) -> Split:
        """The same examples, copied out of the shards into one piece of memory.

        A gather then takes a third of the time. One shard is one piece already.
        """
        if len(self._pixels) == 1:
            return self
        kept = copy(self)
        kept._pixels = [np.concatenate(self._pixels)]
        kept._starts = self._starts[[0, -1]]
        return kept

    def gather(self, indices: NDArray[np.int64], out: Bytes) -> None:
        """Copy the pixels of the examples at ``indices`` into ``out``, in that order.

        Args:
            indices: shape (rows,).
            out: shape (rows, features).
        """
        if len(self._pixels) == 1:
            np.take(self._pixels[0], indices, axis=0, out=out, mode="clip")
            return
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(owner):
            rows = np.flatnonzero(owner == shard)
            out[rows] = self._pixels[shard][indices[rows] - self._starts[shard]]

    def batches(self) -> Iterator[tuple[Bytes, Bytes]]:
        """All examples in order, a shard at a time, as (pixels, labels), not copied."""
        for shard, pixels in enumerate(self._pixels):
            start = self._starts[shard]
            yield pixels, self.labels[start : start + len(pixels)]


class Dataset:
    """A dataset opened from its folder.

    Args:
        folder: where its manifest and shards lie.

    Attributes:
        manifest: what it is.
        train: training examples.
        test: test examples.

    Raises:
        DatasetError: it is missing or malformed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.train = Split(folder, self.manifest, "train")
        self.test = Split(folder, self.manifest, "test")

    @property
    def pixel_mean(self) -> NDArray[np.float64]:
        """Mean of each pixel over the training examples, shape (features,)."""
        return np.array(self.manifest.pixel_sums, dtype=np.float64) / len(self.train)

    def preprocessing(self, scale: float) -> Preprocessing:
        """The recipe of features for models trained on this dataset."""
        return Preprocessing(self.pixel_mean, scale)


def verify_shards(folder: Path, manifest: Manifest) -> None:
    """Check the SHA-256 of every shard, on two threads.

    Raises:
        DatasetError: a shard is missing.
        CorruptDataError: a shard is not what the manifest says; names it.
    """

    def check(entry: Shard) -> None:
        path = folder / entry.file
        try:
            found = checksum(path)
        except FileNotFoundError:
            raise DatasetError(
                f"the shard {path} is missing", "Fetch it again: `distsgd data fetch --force`"
            ) from None
        except OSError as error:
            raise DatasetError(f"the shard {path} cannot be read: {error.strerror}") from None
        if found != entry.sha256:
            raise CorruptDataError(
                f"the shard {path} is corrupt: its SHA-256 is not the manifest's",
                "Fetch it again: `distsgd data fetch --force`",
            )

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, manifest.train + manifest.test))
