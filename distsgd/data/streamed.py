"""Examples of a remote dataset that is larger than the node: a few of its shards at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Bytes, Ints
from distsgd.data.dataset import Split, check_labels
from distsgd.data.manifest import Manifest
from distsgd.data.remote.node_cache import Held, NodeCache
from distsgd.data.shards import OpenShard, label_dtype, open_shard
from distsgd.data.verified import Found

__all__ = ["StreamedSplit"]


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
            check_labels(opened.labels, self._manifest, entry.file)
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
