"""A user's own rows into the same shards as CIFAR-10, read once and in bounded memory.

The work of an import: each row once into a file, then all of them into shards.
"""

from __future__ import annotations

import math
import re
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Ints
from distsgd.data.atomic import installed, sweep
from distsgd.data.cifar10.fetch import DEFAULT_SHARDS, Say
from distsgd.data.column_scale import ColumnScale
from distsgd.data.importing.choose import open_source
from distsgd.data.importing.column_survey import SAMPLE_ROWS, ColumnSurvey
from distsgd.data.importing.source import Batch, Source, Wishes
from distsgd.data.importing.spool import ClassCodes, ColumnStatistics, RejectedRows, Spool
from distsgd.data.locations import RESERVED, dataset_folder, expanded
from distsgd.data.lock_file import waiting_lock
from distsgd.data.manifest import Manifest
from distsgd.data.remote.http import Progress
from distsgd.data.shards import DatasetWriter, label_dtype, shard_spans
from distsgd.data.text_files import some_of
from distsgd.errors import DatasetError, UsageError, system_error

__all__ = ["REJECTED", "Imported", "import_dataset"]


REJECTED = "rejected.csv"
_SHARD_BYTES = 64 * 2**20
_SMALL = 127
"""Whole numbers up to this one use fewer than half of the 256 steps."""


class RowImport:
    """Rows into spools, then into shards.

    Args:
        source: of the rows.
        folder: an empty one, which becomes the dataset.
        share: of the rows that are drawn for testing, if the source does not say which are.
        seed: of that draw.

    Attributes:
        rejected: rows that could not be used.
        notices: what a user should know of the columns.

    Raises:
        DatasetError: the source has no classes that a dataset can have.
    """

    def __init__(self, source: Source, folder: Path, share: float, seed: int) -> None:
        self._source, self._folder = source, folder
        self._codes = ClassCodes(source.classes)
        self._share, self._random = share, np.random.default_rng(seed)
        features = math.prod(source.shape)
        self._spools = folder / "spool"
        self._spools.mkdir()
        self._train = Spool(self._spools / "train", features)
        self._test = Spool(self._spools / "test", features)
        self._statistics = ColumnStatistics(features)
        self.rejected = RejectedRows(folder / REJECTED)
        self.notices = list(source.notices)
        self._seen = 0

    def read(self, progress: Progress) -> None:
        """All rows, once."""
        source = self._source
        for batch in source.train():
            good, codes = self._usable(batch)
            for_test = self._random.random(len(codes)) < (0 if source.test else self._share)
            self._keep(good[~for_test], codes[~for_test])
            self._test.add(good[for_test], codes[for_test])
            progress("reading rows", self._seen, source.rows or 0)
        for batch in source.test() if source.test else ():
            self._test.add(*self._usable(batch))
            progress("reading rows", self._seen, source.rows or 0)
        self._train.flush()
        self._test.flush()
        self._require_rows()

    def _keep(self, values: NDArray[Any], codes: Ints) -> None:
        self._train.add(values, codes)
        if values.dtype != np.uint8:
            self._statistics.add(values)

    def _usable(self, batch: Batch) -> tuple[NDArray[Any], Ints]:
        """Values and codes of the rows that can be used; the others are listed."""
        good, codes, wrong = self._codes.codes(batch.labels)
        self.rejected.add(batch.rejected)
        self.rejected.add(wrong)
        self._seen += len(batch.labels) + len(batch.rejected)
        return (batch.values, codes) if good.all() else (batch.values[good], codes[good])

    def _require_rows(self) -> None:
        for split, spool in (("training", self._train), ("test", self._test)):
            if not len(spool):
                self._refuse_sizes(split)
                first = f", the first ({self.rejected.first[0]})" if self.rejected.count else ""
                raise DatasetError(
                    f"there are no {split} rows: {self._seen} were read, and "
                    f"{self.rejected.count} of them rejected{first}",
                    "Give more rows, or --test-share" if self._source.test is None else "Check it",
                )

    def _refuse_sizes(self, split: str) -> None:
        """Say that images differ in size, if that has left a split without rows."""
        count = self.rejected.of_other_size
        if count > self.rejected.count / 2:
            rows, columns = self.rejected.size
            raise DatasetError(
                f"there are no {split} rows: the images differ in size; of {self._seen}, {count} "
                f"are not of {rows} rows and {columns} columns as the first one is",
                f"Resize all of them, as --size {rows}x{columns}",
            )

    def write(self, name: str, shards: int) -> Manifest:
        """All shards, and the manifest last."""
        classes, order = self._codes.classes()
        scale = self._scale()
        writer = DatasetWriter(self._folder, self._source.shape, classes)
        for split, spool, number in (
            ("train", self._train, shards),
            ("test", self._test, 1),
        ):
            labels = order[spool.labels].astype(label_dtype(len(classes)))
            self._note_missing(classes, labels, "training" if split == "train" else "test")
            number = min(max(number, self._least(spool)), len(spool))
            for file, span in shard_spans(split, len(spool), number):
                writer.write(split, file, spool.pixels(span, scale), labels[span])
        self.close()
        shutil.rmtree(self._spools)
        return writer.finish(name, scale)

    def _note_missing(self, classes: tuple[str, ...], labels: Ints, split: str) -> None:
        """Say which classes have no rows of a split."""
        counts = np.bincount(labels, minlength=len(classes))
        missing = [name for name, count in zip(classes, counts, strict=True) if not count]
        if missing:
            self.notices.append(f"no {split} rows of the classes: {some_of(missing)}")

    def close(self) -> None:
        """Close the files; not for the first time is well, too."""
        for file in (self._train, self._test, self.rejected):
            file.close()

    def _least(self, spool: Spool) -> int:
        """Shards that are not larger than they should be."""
        return -(-len(spool) * math.prod(self._source.shape) // _SHARD_BYTES)

    def _scale(self) -> ColumnScale | None:
        """How numbers become pixels; columns with names have a scale even if it does nothing."""
        if self._source.pixels:
            return None
        images = len(self._source.shape) == 3
        total = len(self._train) + len(self._test) + self.rejected.count
        survey = ColumnSurvey(self._train.sample(SAMPLE_ROWS), total, self._source.names)
        if self._train.are_pixels and self._test.are_pixels:
            greatest = max(self._train.greatest, self._test.greatest)
            if not images:
                greatest = survey.greatest_without_outliers(greatest)
            scale = self._scale_of_whole_numbers(greatest)
        else:
            scale = survey.without_outliers(self._statistics.scale(self._source.names, images))
        if not images:
            self.notices += survey.notices(scale)
        return scale

    def _scale_of_whole_numbers(self, greatest: float) -> ColumnScale | None:
        """Small ones get one factor for all columns, so that what is equal stays equal."""
        names = self._source.names
        small = 0 < greatest <= _SMALL
        if not names and not small:
            return None
        columns, high = len(names) or 1, greatest if small else 255.0
        return ColumnScale(names=names, low=(0.0,) * columns, high=(high,) * columns)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import came to.

    Attributes:
        dataset: the folder.
        name: for --dataset.
        train: training rows.
        test: test rows.
        shape: of an example.
        classes: names of the classes.
        scaled: whether the manifest has a scale of the columns.
        rejected: rows that could not be used; all are in ``rejected.csv`` in the folder.
        first_rejected: the first ten of them, each with why.
        shards: training shards.
        digest: of the dataset.
        label: the column, or array, of the classes; empty for a folder of images.
        features: columns, or arrays, that the rows are made of.
        left_out: columns that were taken for an index, and left out.
        notices: what a user should know of the columns.
    """

    dataset: str
    name: str
    train: int
    test: int
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    scaled: bool
    rejected: int
    first_rejected: tuple[str, ...]
    shards: int
    digest: str
    label: str = ""
    features: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def import_dataset(
    source: str | Path,
    name: str,
    *,
    test: str | Path | None = None,
    test_share: float = 0.2,
    seed: int = 0,
    shards: int = DEFAULT_SHARDS,
    force: bool = False,
    wishes: Wishes | None = None,
    progress: Progress = lambda *_: None,
    say: Say = lambda _: None,
) -> Imported:
    """Make a dataset of rows from Parquet, CSV, NPZ, or a folder of images by class.

    Rows keep their order. Whole numbers from 0 to 255 are taken as they are, but small ones that
    are no pixels are stretched; other numbers are put on 256 steps. The manifest has the scale.

    Args:
        source: file or folder; see `open_source`.
        name: of the dataset, for ``--dataset``.
        test: a file of the test rows, if the source does not say which they are.
        test_share: share of the rows drawn for the test split, where nothing says which they are.
        seed: of that draw.
        shards: training shards, at least; there are more if they were larger than 64 MiB.
        force: replace a dataset of that name.
        wishes: which columns are what.
        progress: told how many rows are read.
        say: told of each stage, in words.

    Raises:
        UsageError: a name or number cannot be used, or it is not clear which column is what.
        SourceError: the source cannot be read.
        DatasetError: it is not enough for a dataset.
        StorageError: the cache cannot be written.
    """
    _check(name, test_share, shards, seed)
    target = dataset_folder(name)
    _refuse_to_replace(target, force)
    opened = open_source(expanded(source), expanded(test) if test else None, wishes or Wishes())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with waiting_lock(target.with_name(f".{name}.lock"), say):
            _refuse_to_replace(target, force)  # again: another import may have ended by now
            sweep(target)
            with (
                installed(target) as beside,
                closing(RowImport(opened, beside, test_share, seed)) as work,
            ):
                say("reading rows")
                work.read(progress)
                say("writing shards")
                manifest = work.write(name, shards)
    except OSError as error:
        raise system_error(error, target.parent) from None
    return Imported(
        dataset=str(target),
        name=manifest.name,
        train=manifest.rows("train"),
        test=manifest.rows("test"),
        shape=manifest.shape,
        classes=manifest.classes,
        scaled=manifest.scale is not None,
        rejected=work.rejected.count,
        first_rejected=tuple(work.rejected.first),
        shards=len(manifest.train),
        digest=manifest.digest,
        label=opened.label,
        features=opened.features,
        left_out=opened.left_out,
        notices=tuple(work.notices),
    )


def _check(name: str, test_share: float, shards: int, seed: int) -> None:
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise UsageError(
            f"--name cannot be '{name}'",
            "Letters, digits, '.', '_' and '-'; not " + " or ".join(RESERVED),
        )
    if not 0 < test_share < 1:
        raise UsageError(f"--test-share cannot be {test_share:g}", "Give a share between 0 and 1")
    if shards < 1:
        raise UsageError(f"--shards cannot be {shards}", "Give 1 or more")
    if seed < 0:
        raise UsageError(f"--seed cannot be {seed}", "Give 0 or more")


def _refuse_to_replace(target: Path, force: bool) -> None:
    if target.exists() and not force:
        raise UsageError(
            f"there is a dataset '{target.name}' in {target}",
            "Take another --name, or give --force",
        )
