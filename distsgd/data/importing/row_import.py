"""The work of an import: each row once into a file, then all of them into shards."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Ints
from distsgd.data.column_scale import ColumnScale
from distsgd.data.importing.class_codes import ClassCodes
from distsgd.data.importing.column_survey import SAMPLE_ROWS, ColumnSurvey
from distsgd.data.importing.rejected_rows import RejectedRows
from distsgd.data.importing.source import Batch, Source
from distsgd.data.importing.spool import ColumnStatistics, Spool
from distsgd.data.manifest import Manifest
from distsgd.data.names import some_of
from distsgd.data.remote.http import Progress
from distsgd.data.shards import DatasetWriter, label_dtype, shard_spans
from distsgd.errors import DatasetError

__all__ = ["REJECTED", "RowImport"]

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
