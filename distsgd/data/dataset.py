"""Datasets: how to open one by its name, path or URI, and how to check all of its shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distsgd.core.model import Preprocessing
from distsgd.data.columns import FLOATS
from distsgd.data.find import dataset_name, find_dataset
from distsgd.data.locations import REMOTE_SOURCE, is_remote_copy, repair_hint
from distsgd.data.manifest import MANIFEST, Manifest, Shard, read_manifest
from distsgd.data.remote.addresses import is_uri
from distsgd.data.split import Split, StreamedSplit
from distsgd.data.verified import FileChecksum, checksum, trust_checksums
from distsgd.errors import CorruptDataError, DatasetError, DistsgdError, machine_trouble

if TYPE_CHECKING:
    from distsgd.data.remote.remote_folder import RemoteFolder

__all__ = ["Dataset", "OtherDataset", "damaged_shards", "open_dataset", "verify_shards"]

_THREADS = 2


class OtherDataset(DatasetError):
    """A dataset was found, but its digest is not the expected one.

    Args:
        folder: where it is.
    """

    def __init__(self, folder: Path) -> None:
        Exception.__init__(self, folder)
        self.folder = folder
        self.problem = f"the dataset in {folder} is not the one that was opened before"
        self.hint = "Fetch it again, or copy the right one there"


class Dataset:
    """An open dataset.

    Both splits of a local dataset are mapped at once, so that a missing shard is noticed; a split
    of a remote one is fetched when it is first used.

    Args:
        folder: where its manifest and shards are.
        checked: checksums that another process has computed; see `distsgd.data.verified`.
        remote: the store that its shards are fetched from; None for a local dataset.
        stream: keep training shards of a remote dataset only while they are used.

    Attributes:
        folder: as given.
        manifest: its shape, classes and shards.

    Raises:
        DatasetError: the manifest or a shard is missing or malformed.
    """

    def __init__(
        self,
        folder: Path,
        checked: Iterable[FileChecksum] = (),
        *,
        remote: RemoteFolder | None = None,
        stream: bool = False,
    ) -> None:
        trust_checksums(checked)
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._remote, self._stream = remote, stream
        if remote is None:
            _ = self.train, self.test

    @cached_property
    def train(self) -> Split:
        """The training examples."""
        if self._remote is not None and self._stream:
            from distsgd.data.remote.fetching_ahead import FetchingAhead

            ahead = FetchingAhead(self._remote)
            return StreamedSplit(self.manifest, self._remote.cache, ahead.follow)
        return self._whole("train")

    @cached_property
    def test(self) -> Split:
        """The test examples."""
        return self._whole("test")

    def _whole(self, split: str) -> Split:
        if self._remote is not None:
            self._remote.fetch_all(self.manifest.shards(split))
        return Split(self.folder, self.manifest, split)

    def in_memory(self) -> Dataset:
        """The same dataset, with its training examples copied into memory."""
        kept = copy(self)
        kept.train = self.train.in_memory()
        return kept

    @property
    def remote(self) -> bool:
        """Whether its shards are fetched from a store."""
        return self._remote is not None

    @property
    def streamed(self) -> bool:
        """Whether training shards are on this node only while they are used."""
        return self._stream and self._remote is not None

    @property
    def pixel_mean(self) -> NDArray[np.float64]:
        """Mean of each pixel over the training examples, shape (features,); 0 for floats."""
        if self.manifest.values == FLOATS:
            return np.zeros(self.manifest.features)
        return np.array(self.manifest.pixel_sums, dtype=np.float64) / self.manifest.rows("train")

    def preprocessing(self, scale: float) -> Preprocessing:
        """How models that are trained on this dataset centre and scale rows.

        Args:
            scale: what centred pixels are divided by. Floats are left as they are.
        """
        if self.manifest.values == FLOATS:
            return Preprocessing(self.pixel_mean, 1.0)
        return Preprocessing(self.pixel_mean, scale)

    def verify(self) -> tuple[FileChecksum, ...]:
        """Check all shards; see `Split.verify`."""
        return self.train.verify() + self.test.verify()


def open_dataset(
    dataset: object,
    *,
    trusted: bool = True,
    folder: Path | None = None,
    digest: str = "",
    cache_limit: int | None = None,
    stream: bool = False,
    checked: Iterable[FileChecksum] = (),
) -> Dataset:
    """Open a dataset by what a user calls it.

    Args:
        dataset: "cifar10", "sample", a name given to `distsgd data import`, the path of a dataset
            folder, or a URI.
        trusted: whether the user has given ``dataset``. A URI that was read from the files of a
            run may be a stranger's: with False its store is asked only if the user has given its
            address before; see `distsgd.data.remote.addresses`.
        folder: where it was when it was opened before, by this run or by its driver; used first.
        digest: that its manifest must have; "" for any.
        cache_limit: bytes that remote datasets may take on this node; None for no limit.
        stream: keep training shards of a remote dataset only while they are used.
        checked: checksums that another process has computed; see `distsgd.data.verified`.

    Raises:
        UsageError: ``dataset`` is not a name, path or usable URI.
        DatasetError: there is no such dataset, or it is malformed.
        OtherDataset: its digest is not the expected one.
        SourceError: its store cannot be reached, or must not be asked.
        StorageError: the machine keeps it from being read, or its cache from being written.
    """
    name = dataset_name(dataset)
    found = None
    for found in _candidates(name, trusted, folder):
        if not digest or read_manifest(found).digest == digest:
            remote = _remote(found, name if trusted and is_uri(name) else "", cache_limit)
            return Dataset(found, checked, remote=remote, stream=stream)
    assert found is not None
    raise OtherDataset(found)


def _candidates(name: str, trusted: bool, folder: Path | None) -> Iterator[Path]:
    """Where a dataset may be: where it was before, then what its name stands for now."""
    is_there = folder is not None and (folder / MANIFEST).is_file()
    if folder is not None and is_there:
        yield folder
    try:
        named = find_dataset(name, trusted=trusted)
    except DistsgdError:
        if not is_there:
            raise
        return
    if named != folder or not is_there:
        yield named


def _remote(folder: Path, uri: str, limit: int | None) -> RemoteFolder | None:
    """The store behind a folder, if it is the local copy of a remote dataset.

    Args:
        folder: the folder.
        uri: that the user has given, or "". A folder made for it may be in the cache of the
            driver, and is then known by its `REMOTE_SOURCE` alone.
        limit: see `open_dataset`.
    """
    if not (is_remote_copy(folder) or (uri and (folder / REMOTE_SOURCE).exists())):
        return None
    from distsgd.data.remote.remote_folder import RemoteFolder, known_source  # loads pyarrow

    return RemoteFolder(folder, uri or known_source(folder), limit)


def damaged_shards(folder: Path, manifest: Manifest) -> list[tuple[Shard, str]]:
    """Hash every shard now, on two threads, and list those that are wrong, each with the reason.

    Raises:
        StorageError: the machine keeps one from being read, so that its state is unknown.
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
    """Check the SHA-256 of every shard, even of those that were checked before.

    Raises:
        DatasetError: a shard is missing.
        CorruptDataError: a shard is not what the manifest says; names it.
    """
    for entry, why in (damaged := damaged_shards(folder, manifest)):
        others = f" (and {len(damaged) - 1} more of its dataset)" if len(damaged) > 1 else ""
        kind = DatasetError if why == "missing" else CorruptDataError
        problem = why if why.startswith("cannot") else f"is {why}"
        raise kind(f"the shard {folder / entry.file} {problem}{others}", repair_hint(folder))
