"""An open dataset: rows by number, gathered from memory-mapped shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Bytes, Ints
from distsgd.core.model.features import Preprocessing
from distsgd.data.locations import is_remote_copy, mending
from distsgd.data.manifest import Manifest, Shard, read_manifest
from distsgd.data.shards import OpenShard, open_shard
from distsgd.data.verified import Found, believe, checksum
from distsgd.errors import CorruptDataError, DatasetError, machine_trouble

if TYPE_CHECKING:
    from distsgd.data.remote.remote_folder import RemoteFolder

__all__ = ["Dataset", "Split", "check_labels", "damaged_shards", "verify_shards"]

_THREADS = 2


def check_labels(labels: Ints, manifest: Manifest, where: str) -> None:
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
            check_labels(self._labels, manifest, f"the {split} split of {folder}")

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


class Dataset:
    """A dataset opened from its folder.

    Of one that lies elsewhere (`distsgd.data.remote`), a split is fetched when it is first used.

    Args:
        folder: where its manifest and shards lie.
        found: what another process has found of its shards; see `distsgd.data.verified`.
        cache_limit: bytes that remote datasets may take on this node, or None.
        stream: fetch training shards of a remote dataset only while they are used.
        remote: whether it stands for a remote dataset; None to see whether it lies in the cache.

    Attributes:
        manifest: what it is.

    Raises:
        DatasetError: it is missing or malformed.
    """

    def __init__(
        self,
        folder: Path,
        found: Iterable[Found] = (),
        *,
        cache_limit: int | None = None,
        stream: bool = False,
        remote: bool | None = None,
    ) -> None:
        believe(found)
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._remote: RemoteFolder | None = None
        self._stream = stream
        if is_remote_copy(folder) if remote is None else remote:
            from distsgd.data.remote.remote_folder import RemoteFolder

            self._remote = RemoteFolder(folder, cache_limit)
        else:
            _ = self.train, self.test

    @cached_property
    def train(self) -> Split:
        """The training examples."""
        if self._remote is not None and self._stream:
            from distsgd.data.remote.fetching_ahead import FetchingAhead
            from distsgd.data.streamed import StreamedSplit

            ahead = FetchingAhead(self.folder, self._remote.limit)
            return StreamedSplit(self.manifest, self._remote.cache, ahead.follow)
        return self._whole("train")

    @cached_property
    def test(self) -> Split:
        """The test examples."""
        return self._whole("test")

    def _whole(self, split: str) -> Split:
        if self._remote is not None:
            self._remote.ensure(self.manifest.shards(split))
        return Split(self.folder, self.manifest, split)

    @property
    def remote(self) -> bool:
        """Whether it lies elsewhere, and its shards are fetched."""
        return self._remote is not None

    @property
    def streamed(self) -> bool:
        """Whether training shards are here only while they are used."""
        return self._stream and self._remote is not None

    @property
    def pixel_mean(self) -> NDArray[np.float64]:
        """Mean of each pixel over the training examples, shape (features,)."""
        return np.array(self.manifest.pixel_sums, dtype=np.float64) / self.manifest.rows("train")

    def preprocessing(self, scale: float) -> Preprocessing:
        """The recipe of features for models trained on this dataset."""
        return Preprocessing(self.pixel_mean, scale)

    def verify(self) -> tuple[Found, ...]:
        """Check all shards; see `Split.verify`."""
        return self.train.verify() + self.test.verify()


def damaged_shards(folder: Path, manifest: Manifest) -> list[tuple[Shard, str]]:
    """Hash every shard now, on two threads, and list those that are wrong, each with why.

    Raises:
        StorageError: the machine keeps one from being read, so that nothing can be said of it.
    """

    def check(entry: Shard) -> str:
        try:
            sound = checksum(folder / entry.file) == entry.sha256
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            if trouble := machine_trouble(error, folder / entry.file):
                raise trouble from None
            return f"cannot be read: {error.strerror}"
        return "" if sound else "corrupt: its SHA-256 is not the manifest's"

    shards = manifest.train + manifest.test
    with ThreadPoolExecutor(_THREADS) as pool:
        reasons = list(pool.map(check, shards))
    return [(entry, why) for entry, why in zip(shards, reasons, strict=True) if why]


def verify_shards(folder: Path, manifest: Manifest) -> None:
    """Check the SHA-256 of every shard, whatever was known of it.

    Raises:
        DatasetError: a shard is missing.
        CorruptDataError: a shard is not what the manifest says; names it.
    """
    for entry, why in (damaged := damaged_shards(folder, manifest)):
        others = f" (and {len(damaged) - 1} more of its dataset)" if len(damaged) > 1 else ""
        kind = DatasetError if why == "missing" else CorruptDataError
        says = why if why.startswith("cannot") else f"is {why}"
        raise kind(f"the shard {folder / entry.file} {says}{others}", mending(folder))
