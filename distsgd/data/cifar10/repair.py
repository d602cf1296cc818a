"""Verify a dataset; repair CIFAR-10 and its sample by rebuilding the damaged files alone."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distsgd.data.atomic import Progress, Say, locked_dataset, sync_file
from distsgd.data.cifar10.archive import (
    CLASSES,
    ROWS,
    SHAPE,
    Examples,
    Records,
    examples_of,
    records_of,
    sample_of,
    verify_records,
)
from distsgd.data.cifar10.fetch import obtain, remove_downloads
from distsgd.data.dataset import Dataset, damaged_shards, open_dataset, verify_shards
from distsgd.data.find import dataset_name, find_dataset
from distsgd.data.folder_files import open_inside, replace_inside
from distsgd.data.locations import SAMPLE, dataset_folder
from distsgd.data.manifest import MANIFEST, Manifest, Shard, read_manifest
from distsgd.data.remote.addresses import is_uri
from distsgd.data.shards import DEFAULT_SHARDS, open_shard, shard_spans, write_shard
from distsgd.data.verified import checksum
from distsgd.errors import CorruptDataError, DatasetError, system_error

__all__ = ["Repaired", "repair_dataset", "verify_dataset"]

_MAKERS = {"cifar10": examples_of, "cifar10-sample": sample_of}
_SAMPLE_SHARDS = 2


def verify_dataset(dataset: object) -> Dataset:
    """Check every checksum of a dataset, for CIFAR-10 also the six published ones, and return it.

    Args:
        dataset: see `open_dataset`; missing shards of a remote one are fetched.

    Raises:
        DatasetError: something is missing or malformed.
        CorruptDataError: something has been altered; names it.
    """
    remote = open_dataset(dataset) if is_uri(dataset_name(dataset)) else None
    if remote is not None:
        remote.verify()
    folder = find_dataset(dataset) if remote is None else remote.folder
    manifest = read_manifest(folder)
    verify_shards(folder, manifest)
    opened = remote or Dataset(folder)
    if manifest.name == "cifar10" and len(opened.train) == ROWS["train"]:
        verify_records(_records_of(opened))
    return opened


def _records_of(dataset: Dataset) -> Records:
    return records_of(dataset.train.batches(), dataset.test.batches())


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """The result of a repair.

    Attributes:
        dataset: path of its folder.
        repaired: names of the files that were written again; empty if all were intact.
        shards: number of shards.
        digest: digest of the dataset, which is intact now.
    """

    dataset: str
    repaired: tuple[str, ...]
    shards: int
    digest: str


def repair_dataset(
    dataset: str = "cifar10",
    source: str = "auto",
    *,
    progress: Progress = lambda *_: None,
    say: Say = lambda _: None,
) -> Repaired:
    """Rebuild the damaged and missing files of a dataset, each in one rename.

    Args:
        dataset: "cifar10", "sample", or the path of a dataset folder made of either.
        source: where missing images come from; see `fetch_cifar10`.
        progress: receives the progress of a download.
        say: receives a line about each stage.

    Raises:
        DatasetError: there is no such dataset, or it cannot be rebuilt.
        SourceError: no source could be used.
        CorruptDataError: what the source gave is not CIFAR-10, or not what was there before.
        StorageError: the folder cannot be written.
    """
    folder = find_dataset(dataset)
    with locked_dataset("cifar10", say):
        try:
            for left in folder.glob(".*.tmp"):
                left.unlink()
            return _Repair(folder, source, progress, say).run()
        except OSError as error:
            raise system_error(error, folder) from None


class _Repair:
    """One repair, under the lock."""

    def __init__(self, folder: Path, source: str, progress: Progress, say: Say) -> None:
        self._folder, self._source, self._progress, self._say = folder, source, progress, say
        self._repaired: list[str] = []
        self._obtained = False

    def run(self) -> Repaired:
        try:
            manifest = read_manifest(self._folder)
        except DatasetError as error:
            self._say(error.problem)
            manifest = self._rebuild_manifest()
        else:
            self._rebuild_shards(manifest)
        sync_file(self._folder)
        if self._obtained:
            remove_downloads()
        return Repaired(
            dataset=str(self._folder),
            repaired=tuple(self._repaired),
            shards=len(manifest.train) + len(manifest.test),
            digest=manifest.digest,
        )

    def _rebuild_shards(self, manifest: Manifest) -> None:
        """Rebuild the shards that are not what an intact manifest says."""
        damaged = damaged_shards(self._folder, manifest)
        for entry, why in damaged:
            self._say(f"{entry.file} is {why}".replace("is cannot", "cannot"))
        if not damaged:
            return
        if manifest.name not in _MAKERS:
            raise DatasetError(
                f"{self._folder} is an imported dataset ('{manifest.name}'), which cannot be "
                "rebuilt from CIFAR-10",
                "Import it again, or put these back: "
                + ", ".join(entry.file for entry, _ in damaged),
            )
        wrong = {entry.file: entry for entry, _ in damaged}
        examples = _MAKERS[manifest.name](self._records(manifest.name))
        for split, pair in zip(("train", "test"), examples, strict=True):
            for file, span in shard_spans(split, len(pair[1]), len(manifest.shards(split))):
                if file in wrong:
                    self._write(file, pair, span, wrong.pop(file))
        if wrong:
            raise CorruptDataError(
                f"{', '.join(wrong)} of {self._folder} cannot be rebuilt from CIFAR-10",
                "Rebuild the whole dataset: `distsgd data fetch --force`",
            )

    def _rebuild_manifest(self) -> Manifest:
        """Rebuild the manifest from intact shards, and shards that differ from their source."""
        sample = self._folder.resolve() == SAMPLE.resolve()
        name = "cifar10-sample" if sample else "cifar10"
        number = self._number_of_shards(_SAMPLE_SHARDS if sample else DEFAULT_SHARDS)
        records = None if sample else self._own_records(number)
        ours = sample or self._folder.resolve() == dataset_folder("cifar10").resolve()
        if records is None and not ours:
            raise DatasetError(
                f"the source of {self._folder} is unknown: its manifest and a shard are damaged",
                "Fetch CIFAR-10 into the cache instead: `distsgd data fetch`",
            )
        train, test = _MAKERS[name](records or self._records(name))
        manifest = Manifest(
            name=name,
            shape=SHAPE,
            classes=CLASSES,
            pixel_sums=tuple(int(n) for n in train[0].sum(axis=0, dtype=np.int64)),
            train=tuple(
                self._write(file, train, span)
                for file, span in shard_spans("train", len(train[1]), number)
            ),
            test=tuple(
                self._write(file, test, span) for file, span in shard_spans("test", len(test[1]), 1)
            ),
        )
        replace_inside(self._folder / MANIFEST, manifest.to_json().encode(), mode=0o666)
        self._repaired.append(MANIFEST)
        return manifest

    def _number_of_shards(self, default: int) -> int:
        """The number of training shards, according to the names of the remaining ones."""
        names = " ".join(path.name for path in self._folder.iterdir())
        found = re.findall(r"\btrain-\d{5}-of-(\d{5})\.arrow\b", names)
        return max(1, int(max(found, key=found.count))) if found else default

    def _own_records(self, number: int) -> Records | None:
        """The six batches from the shards themselves, if these are intact."""
        shards = {"train": number, "test": 1}
        manifest = Manifest(
            name="", shape=SHAPE, classes=CLASSES, pixel_sums=(), train=(), test=()
        )  # fmt: skip
        found: dict[str, list[Examples]] = {}
        with suppress(DatasetError, OSError):
            for split, total in ROWS.items():
                for file, span in shard_spans(split, total, shards[split]):
                    path = self._folder / file
                    entry = Shard(file, span.stop - span.start, 0, checksum(path))
                    found.setdefault(split, []).append(open_shard(path, entry, manifest)[:2])
            records = records_of(found["train"], found["test"])
            verify_records(records)
            return records
        return None

    def _records(self, name: str) -> Records:
        """The six batches, verified; for the sample, from CIFAR-10 in the cache if possible."""
        if name == "cifar10-sample" and self._source == "auto":
            with suppress(DatasetError):
                records = _records_of(open_dataset("cifar10"))
                verify_records(records)
                return records
        self._obtained = True
        return obtain(self._source, self._progress, self._say)

    def _write(
        self, file: str, examples: Examples, span: slice, wanted: Shard | None = None
    ) -> Shard:
        """Write one shard, unless it has these bytes already."""
        path = self._folder / file
        beside = path.with_name(f".{file}.{os.getpid()}.tmp")
        beside.unlink(missing_ok=True)  # do not write into it: it may be a link
        os.close(open_inside(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o666))
        try:
            written = write_shard(beside, examples[0][span], examples[1][span], SHAPE, CLASSES)
            if wanted is not None and written.sha256 != wanted.sha256:
                raise CorruptDataError(
                    f"{file} was rebuilt with other bytes than {self._folder / MANIFEST} says",
                    "Another version of pyarrow may have written it; rebuild the whole dataset: "
                    "`distsgd data fetch --force`",
                )
            if not self._has(path, written.sha256):
                sync_file(beside)
                beside.replace(path)
                self._repaired.append(file)
        finally:
            beside.unlink(missing_ok=True)
        return Shard(file, written.rows, written.size, written.sha256)

    @staticmethod
    def _has(path: Path, sha256: str) -> bool:
        with suppress(OSError):
            return checksum(path) == sha256
        return False
