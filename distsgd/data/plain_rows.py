"""Read training examples from their shards by other code than training does, to verify it."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distsgd.core.arrays import Ints, Values
from distsgd.data.folder_files import mappable
from distsgd.data.manifest import Manifest

__all__ = ["PlainRows"]


class PlainRows:
    """Reads examples from the mapped files; caches nothing.

    Args:
        folder: folder of the dataset.
        manifest: its manifest.

    Attributes:
        files: names of the training shards.
        pixel_sums: sum of each pixel over all training examples, shape (features,), int64; 0 for
            floats.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._shards: list[tuple[Values, Ints]] = []
        self._digests: list[int] = []
        self._weights: list[NDArray[np.float32]] = []
        self.files = [entry.file for entry in manifest.train]
        self.pixel_sums = np.zeros(manifest.features, dtype=np.int64)
        for file in self.files:
            with mappable(folder / file) as path:
                batch = pa.ipc.open_file(pa.memory_map(path)).get_batch(0)
            flat = batch.column(0).storage.flatten().to_numpy(zero_copy_only=True)
            rows, labels = flat.reshape(len(batch), -1), batch.column(1).to_numpy()
            self._shards.append((rows, labels))
            if manifest.mean_weight is not None:
                self._weights.append(batch.column(2).to_numpy())
            self._digests += [zlib.crc32(row) for row in rows]
            for low in range(0, len(rows) if rows.dtype == np.uint8 else 0, 4096):
                self.pixel_sums += rows[low : low + 4096].sum(axis=0, dtype=np.int64)

    def read(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """The pixels, shape (rows, features), and labels, shape (rows,), of some examples."""
        found = [self._at(int(index)) for index in indices]
        pixels = np.array([shard[0][row] for shard, row, _ in found], dtype=np.float64)
        return pixels, np.array([shard[1][row] for shard, row, _ in found], dtype=np.intp)

    def labels(self) -> NDArray[np.intp]:
        """The labels of all training examples."""
        return np.concatenate([labels for _, labels in self._shards]).astype(np.intp)

    def weights(self, indices: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """The weights of some examples, shape (rows,); None if they have none."""
        if not self._weights:
            return None
        whole = np.concatenate(self._weights)
        return whole[indices].astype(np.float64)

    def changed(self, indices: NDArray[np.int64]) -> tuple[int, str] | None:
        """The first of some examples that has changed since it was mapped, and its file."""
        for index in indices:
            shard, row, file = self._at(int(index))
            if zlib.crc32(shard[0][row]) != self._digests[int(index)]:
                return int(index), file
        return None

    def _at(self, index: int) -> tuple[tuple[Values, Ints], int, str]:
        """The shard of an example, its row there, and the shard's file."""
        for shard, file in zip(self._shards, self.files, strict=True):
            if index < len(shard[1]):
                return shard, index, file
            index -= len(shard[1])
        raise IndexError(index)
