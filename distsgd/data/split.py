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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Bytes, Ints
from distsgd.data.manifest import Manifest
from distsgd.data.remote.node_cache import Held, NodeCache
from distsgd.data.shards import OpenShard, label_dtype, open_shard
from distsgd.data.verified import Found
from distsgd.errors import DatasetError

__all__ = ["Split", "StreamedSplit"]

_THREADS = 2


class Split:
    """The training or test examples of a dataset.

    Its shards are checked against the manifest when rows or labels of them are first used: see
    `verify`, whose errors all methods can raise.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        opened = [
            open_shard(folder / entry.file, entry, manifest) for entry in manifest.shards(split)
        ]
        self._unchecked = opened
        self._found: tuple[Found, ...] = ()
        self._pixels = [shard.pixels for shard in opened]
        self._starts = np.cumsum([0, *(len(pixels) for pixels in self._pixels)])
        self._labels: Ints = np.concatenate([shard.labels for shard in opened])
        if len(self) and int(self._labels.max()) >= len(manifest.classes):
            self.verify()
            _check_labels(self._labels, manifest, f"the {split} split of {folder}")

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> Ints:
        """Shape (rows,), uint8 or uint16."""
        self.verify()
        return self._labels

    def labels_of(self, indices: NDArray[np.int64]) -> Ints:
        """The labels of the examples at ``indices``, of its shape."""
        found: Ints = self.labels[indices]
        return found

    def expect(self, shards: Sequence[int], most: int) -> None:
        """Say which shards come, and how many are needed at once; here all are at hand."""

    def verify(self) -> tuple[Found, ...]:
        """Check the SHA-256 of every shard, on two threads, unless this has been done.

        Returns:
            what was found, for other processes to believe.

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
        """The same examples, copied out of the shards into one piece of memory.

        A gather then takes a third of the time. One shard is one piece already.
        """
        self.verify()
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
        if self._unchecked:
            self.verify()
        if len(self._pixels) == 1:
            np.take(self._pixels[0], indices, axis=0, out=out, mode="clip")
            return
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(owner):
            rows = np.flatnonzero(owner == shard)
            out[rows] = self._pixels[shard][indices[rows] - self._starts[shard]]

    def batches(self) -> Iterator[tuple[Bytes, Ints]]:
        """All examples in order, a shard at a time, as (pixels, labels), not copied."""
        self.verify()
        for shard, pixels in enumerate(self._pixels):
            start = self._starts[shard]
            yield pixels, self._labels[start : start + len(pixels)]


_LEAST_AHEAD = 2
_FAR = 1000
"""Shards that are told of, of those that come: each window tells anew."""


class _InUse(NamedTuple):
    held: Held
    opened: OpenShard


class StreamedSplit(Split):
    """The training examples of a dataset, of which not all are here at once.

    Like `Split`, but shards are fetched when rows of them are needed, if not before that.

    Args:
        manifest: of the dataset.
        cache: of this node.
        ahead: told what `expect` was told, as names of files, and how many of them to fetch ahead.
    """

    def __init__(
        self,
        manifest: Manifest,
        cache: NodeCache,
        ahead: Callable[[Sequence[str], int], None] = lambda files, count: None,
    ) -> None:
        self._manifest, self._cache, self._ahead = manifest, cache, ahead
        self._entries = manifest.train
        self._starts = np.cumsum([0, *(entry.rows for entry in self._entries)])
        self._in_use: dict[int, _InUse] = {}  # the one used last comes last
        self._most = len(self._entries)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def labels(self) -> Ints:
        """All labels, shape (rows,); goes through all shards."""
        # Copies: a view would keep a shard mapped, and its room taken, after it was let go.
        return np.concatenate([labels.copy() for _, labels in self.batches()])

    def labels_of(self, indices: NDArray[np.int64]) -> Ints:
        """The labels of the examples at ``indices``, of its shape."""
        out = np.empty(indices.shape, dtype=label_dtype(len(self._manifest.classes)))
        for shard, rows, within in self._parts(indices):
            out[rows] = self._open(shard).labels[within]
        return out

    def verify(self) -> tuple[Found, ...]:
        """Nothing to do: each shard is checked when it is fetched, and when it is opened."""
        return ()

    def in_memory(self) -> StreamedSplit:
        """Itself: there is no room for all."""
        return self

    def gather(self, indices: NDArray[np.int64], out: Bytes) -> None:
        """Copy the pixels of the examples at ``indices`` into ``out``; see `Split.gather`."""
        for shard, rows, within in self._parts(indices):
            out[rows] = self._open(shard).pixels[within]

    def batches(self) -> Iterator[tuple[Bytes, Ints]]:
        """All examples in the order of the shards, a shard at a time, as (pixels, labels)."""
        numbers = range(len(self._entries))
        self.expect(numbers, 1)
        for shard in numbers:
            opened = self._open(shard)
            yield opened.pixels, opened.labels
            self._let_go(shard)
            self.expect(range(shard + 1, len(self._entries)), 1)

    def expect(self, shards: Sequence[int], most: int) -> None:
        """Say what comes.

        No more is fetched ahead than half as much again: the rest of the cache is for what has been
        used, and will be needed soonest of all that has. Of a cache that is filled with what comes,
        nothing is found again.

        Args:
            shards: in the order in which they will be needed.
            most: how many are needed at once.
        """
        self._most = most
        nearest = islice(dict.fromkeys(shards), _FAR)
        files = [self._entries[shard].file for shard in nearest]
        self._cache.need(files)
        self._ahead(files, most + max(_LEAST_AHEAD, most // 2))

    def _parts(
        self, indices: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.intp] | tuple[NDArray[np.intp], ...], NDArray[np.int64]]]:
        """Shard, where its examples stand in ``indices``, and their rows within the shard."""
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(owner):
            rows = np.nonzero(owner == shard)
            yield int(shard), rows, indices[rows] - self._starts[shard]

    def _open(self, shard: int) -> OpenShard:
        if shard in self._in_use:
            used = self._in_use.pop(shard)
        else:
            while len(self._in_use) >= self._most:
                self._let_go(next(iter(self._in_use)))
            entry = self._entries[shard]
            held = self._cache.hold(entry, self._make_room)
            opened = open_shard(held.path, entry, self._manifest)
            opened.verify()
            _check_labels(opened.labels, self._manifest, entry.file)
            used = _InUse(held, opened)
        self._in_use[shard] = used
        return used.opened

    def _make_room(self) -> bool:
        """Let go of the shard that was used longest ago."""
        if not self._in_use:
            return False
        self._let_go(next(iter(self._in_use)))
        return True

    def _let_go(self, shard: int) -> None:
        if (used := self._in_use.pop(shard, None)) is not None:
            used.held.release()


def _check_labels(labels: Ints, manifest: Manifest, where: str) -> None:
    """Refuse labels that no class is named for.

    Raises:
        DatasetError: there is one.
    """
    if len(labels) and int(labels.max()) >= len(manifest.classes):
        raise DatasetError(
            f"{where} has a label {labels.max()}, but only {len(manifest.classes)} classes are "
            "named",
            "The dataset was written wrongly; fetch it again",
        )
