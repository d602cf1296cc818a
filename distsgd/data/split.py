"""The training or test examples of an open dataset, gathered by number from its shards.

A `Split` has all of its shards mapped; a `StreamedSplit`, of a remote dataset that is larger than
the room for it on this node, has a few of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats, Ints, Values
from distsgd.data.manifest import Manifest
from distsgd.data.remote.node_cache import Held, NodeCache
from distsgd.data.shards import OpenShard, label_dtype, open_shard
from distsgd.data.verified import FileChecksum
from distsgd.errors import DatasetError

__all__ = ["Split", "StreamedSplit"]

_THREADS = 2


class Split:
    """The training or test examples of a dataset.

    Its shards are checked against the manifest before their rows or labels are first used: see
    `verify`, whose errors all methods can raise.

    Args:
        folder: the folder of the dataset.
        manifest: its manifest.
        split: "train" or "test".

    Raises:
        DatasetError: a shard is missing or malformed, or a label has no class.
        CorruptDataError: a shard is not a whole Arrow file.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        opened = [
            open_shard(folder / entry.file, entry, manifest) for entry in manifest.shards(split)
        ]
        self._unchecked = opened
        self._found: tuple[FileChecksum, ...] = ()
        self._rows = [shard.rows for shard in opened]
        self._starts = np.cumsum([0, *(len(rows) for rows in self._rows)])
        self._dtype = np.dtype(manifest.values)
        weights = [shard.weights for shard in opened if shard.weights is not None]
        self._weights: Floats | None = np.concatenate(weights) if weights else None
        self._labels: Ints = np.concatenate([shard.labels for shard in opened])
        if len(self) and int(self._labels.max()) >= len(manifest.classes):
            self.verify()
            _check_labels(self._labels, manifest, f"the {split} split of {folder}")

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> Ints:
        """All labels, shape (rows,), uint8 or uint16."""
        self.verify()
        return self._labels

    def labels_of(self, indices: NDArray[np.int64]) -> Ints:
        """The labels of the examples at ``indices``, in its shape, uint8 or uint16."""
        found: Ints = self.labels[indices]
        return found

    @property
    def dtype(self) -> np.dtype[Any]:
        """What rows hold: uint8 pixels, or float32 features."""
        return self._dtype

    @property
    def weights(self) -> Floats | None:
        """All weights of rows, shape (rows,), float32; None if they have none."""
        self.verify()
        return self._weights

    def weights_of(self, indices: NDArray[np.int64]) -> Floats | None:
        """The weights of the examples at ``indices``, in its shape; None if they have none."""
        return None if (weights := self.weights) is None else weights[indices]

    def expect(self, shards: Sequence[int], most: int) -> None:
        """Announce which shards will be needed; see `StreamedSplit`. Here all are mapped."""

    def verify(self) -> tuple[FileChecksum, ...]:
        """Check the SHA-256 of every shard, on two threads, unless this has been done.

        Returns:
            the checksums, which other processes may trust.

        Raises:
            CorruptDataError: a shard is not what the manifest says; names it.
        """
        if self._unchecked:
            with ThreadPoolExecutor(_THREADS) as pool:
                found = pool.map(OpenShard.verify, self._unchecked)
                self._found = tuple(one for one in found if one is not None)
            self._unchecked = []
        return self._found

    def in_memory(self) -> Split:
        """The same examples, copied from the shards into one array.

        Gathering then takes a third of the time. A single shard is one array already.
        """
        self.verify()
        if len(self._rows) == 1:
            return self
        kept = copy(self)
        kept._rows = [np.concatenate(self._rows)]
        kept._starts = self._starts[[0, -1]]
        return kept

    def gather(self, indices: NDArray[np.int64], out: Values) -> None:
        """Copy the rows of the examples at ``indices`` into ``out``, in that order.

        Args:
            indices: numbers of the examples, shape (rows,).
            out: shape (rows, features), of `dtype`.
        """
        if self._unchecked:
            self.verify()
        if len(self._rows) == 1:
            np.take(self._rows[0], indices, axis=0, out=out, mode="clip")
            return
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(owner):
            rows = np.flatnonzero(owner == shard)
            out[rows] = self._rows[shard][indices[rows] - self._starts[shard]]

    def batches(self) -> Iterator[tuple[Values, Ints]]:
        """All examples in order, a shard at a time, as views (rows, labels).

        Rows have the shape (rows, features), of `dtype`; labels have the shape (rows,).
        """
        self.verify()
        for shard, rows in enumerate(self._rows):
            start = self._starts[shard]
            yield rows, self._labels[start : start + len(rows)]


_LEAST_AHEAD = 2
_FAR = 1000
"""Most shards that are announced at once; each window announces again."""


class _InUse(NamedTuple):
    held: Held
    opened: OpenShard


class StreamedSplit(Split):
    """The training examples of a remote dataset, only some of whose shards are here at a time.

    A shard is fetched at the latest when its rows are needed.

    Args:
        manifest: the manifest of the dataset.
        cache: the shards on this node.
        ahead: receives the files that `expect` announces, and how many of them to fetch ahead.
    """

    def __init__(
        self,
        manifest: Manifest,
        cache: NodeCache,
        ahead: Callable[[Sequence[str], int], None] = lambda files, count: None,
    ) -> None:
        self._manifest, self._cache, self._ahead = manifest, cache, ahead
        self._dtype = np.dtype(manifest.values)
        self._entries = manifest.train
        self._starts = np.cumsum([0, *(entry.rows for entry in self._entries)])
        self._in_use: dict[int, _InUse] = {}  # most recently used last
        self._most = len(self._entries)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def labels(self) -> Ints:
        """All labels, shape (rows,), uint8 or uint16; reads all shards."""
        # Copies: a view would keep a released shard mapped, and its space occupied.
        return np.concatenate([labels.copy() for _, labels in self.batches()])

    def labels_of(self, indices: NDArray[np.int64]) -> Ints:
        """The labels of the examples at ``indices``, in its shape, uint8 or uint16."""
        out = np.empty(indices.shape, dtype=label_dtype(len(self._manifest.classes)))
        for shard, rows, within in self._parts(indices):
            out[rows] = self._open(shard).labels[within]
        return out

    @property
    def weights(self) -> Floats | None:
        """All weights of rows, or None; reads all shards."""
        return self.weights_of(np.arange(len(self)))

    def weights_of(self, indices: NDArray[np.int64]) -> Floats | None:
        """The weights of the examples at ``indices``, in its shape; None if they have none."""
        if self._manifest.mean_weight is None:
            return None
        out: Floats = np.empty(indices.shape, dtype=np.float32)
        for shard, rows, within in self._parts(indices):
            weights = self._open(shard).weights
            assert weights is not None
            out[rows] = weights[within]
        return out

    def verify(self) -> tuple[FileChecksum, ...]:
        """Do nothing: each shard is checked when it is fetched, and when it is opened."""
        return ()

    def in_memory(self) -> StreamedSplit:
        """Itself, as not all examples fit."""
        return self

    def gather(self, indices: NDArray[np.int64], out: Values) -> None:
        """Copy the rows of the examples at ``indices`` into ``out``; see `Split.gather`."""
        for shard, rows, within in self._parts(indices):
            out[rows] = self._open(shard).rows[within]

    def batches(self) -> Iterator[tuple[Values, Ints]]:
        """All examples in order, a shard at a time; see `Split.batches`."""
        numbers = range(len(self._entries))
        self.expect(numbers, 1)
        for shard in numbers:
            opened = self._open(shard)
            yield opened.rows, opened.labels
            self._release(shard)
            self.expect(range(shard + 1, len(self._entries)), 1)

    def expect(self, shards: Sequence[int], most: int) -> None:
        """Announce which shards will be needed.

        At most half as many again are fetched ahead: the rest of the cache keeps the used shards
        that will be needed soonest. If the cache were filled with upcoming shards, no used one
        would be found there again.

        Args:
            shards: numbers of the shards, in the order in which they will be needed.
            most: the number of shards that are needed at once.
        """
        self._most = most
        nearest = islice(dict.fromkeys(shards), _FAR)
        files = [self._entries[shard].file for shard in nearest]
        self._cache.need(files)
        self._ahead(files, most + max(_LEAST_AHEAD, most // 2))

    def _parts(
        self, indices: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.intp] | tuple[NDArray[np.intp], ...], NDArray[np.int64]]]:
        """Each shard, the places of its examples in ``indices``, and their rows in the shard."""
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(owner):
            rows = np.nonzero(owner == shard)
            yield int(shard), rows, indices[rows] - self._starts[shard]

    def _open(self, shard: int) -> OpenShard:
        if shard in self._in_use:
            used = self._in_use.pop(shard)
        else:
            while len(self._in_use) >= self._most:
                self._release(next(iter(self._in_use)))
            entry = self._entries[shard]
            held = self._cache.hold(entry, self._make_room)
            opened = open_shard(held.path, entry, self._manifest)
            opened.verify()
            _check_labels(opened.labels, self._manifest, entry.file)
            used = _InUse(held, opened)
        self._in_use[shard] = used
        return used.opened

    def _make_room(self) -> bool:
        """Release the least recently used shard; returns whether there was one."""
        if not self._in_use:
            return False
        self._release(next(iter(self._in_use)))
        return True

    def _release(self, shard: int) -> None:
        if (used := self._in_use.pop(shard, None)) is not None:
            used.held.release()


def _check_labels(labels: Ints, manifest: Manifest, where: str) -> None:
    """Refuse labels without a class.

    Raises:
        DatasetError: there is one.
    """
    if len(labels) and int(labels.max()) >= len(manifest.classes):
        raise DatasetError(
            f"{where} has a label {labels.max()}, but its manifest names only "
            f"{len(manifest.classes)} classes",
            "The dataset was written wrongly; fetch it again",
        )
