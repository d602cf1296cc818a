"""The work of an import: read each row once into a file, then write all of them as shards."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Ints
from distsgd.data.atomic import Progress
from distsgd.data.columns import Columns
from distsgd.data.importing.column_survey import ColumnSurvey
from distsgd.data.importing.source import Batch, Source
from distsgd.data.importing.spool import ClassCodes, ColumnStatistics, RejectedRows, Spool
from distsgd.data.manifest import Manifest
from distsgd.data.shards import DatasetWriter, label_dtype, shard_spans
from distsgd.data.standardising import SAMPLE_ROWS
from distsgd.data.text_files import some_of
from distsgd.errors import DatasetError
from distsgd.spelling import spelling

__all__ = ["REJECTED", "RowImport"]

REJECTED = "rejected.csv"
_SHARD_BYTES = 64 * 2**20
_SMALL = 127
"""Whole numbers up to this one use fewer than half of the 256 steps."""


class RowImport:
    """Reads rows into spools, then writes them into shards.

    Args:
        source: the rows.
        folder: an empty folder, which becomes the dataset.
        test_share: share of the rows that are drawn for testing, if the source does not say which.
        seed: seed of that draw.

    Attributes:
        rejected: rows that could not be used.
        notices: what the user should know about the columns, a line each.

    Raises:
        DatasetError: the class names of the source cannot be used.
    """

    def __init__(self, source: Source, folder: Path, test_share: float, seed: int) -> None:
        self._source, self._folder = source, folder
        self._codes = ClassCodes(source.classes)
        self._share, self._random = test_share, np.random.default_rng(seed)
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
        """Read all rows.

        Raises:
            DatasetError: there are no rows to train or to test with, or too many classes.
            SourceError: the source cannot be read.
        """
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
        """Values and class codes of the rows that can be used; records the others."""
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
                larger = f"Give more rows, or a larger {spelling().setting('test_share')}"
                raise DatasetError(
                    f"there are no {split} rows: {self._seen} were read, and "
                    f"{self.rejected.count} of them rejected{first}",
                    larger if self._source.test is None else "Check the file of the test rows",
                )

    def _refuse_sizes(self, split: str) -> None:
        """Refuse images of different sizes, if these left a split without rows."""
        count = self.rejected.of_other_size
        if count > self.rejected.count / 2:
            rows, columns = self.rejected.size
            raise DatasetError(
                f"there are no {split} rows: the images differ in size; of {self._seen}, {count} "
                f"do not have {rows} rows and {columns} columns as the first one has",
                f"Resize all of them: {spelling().given('size', self.rejected.size)}",
            )

    def write(self, name: str, shards: int) -> Manifest:
        """Write all shards, and the manifest last.

        Args:
            name: name of the dataset.
            shards: least number of training shards.
        """
        classes, order = self._codes.classes()
        scale = self._scale()
        writer = DatasetWriter(self._folder, self._source.shape, classes)
        for split, spool, number in (
            ("train", self._train, shards),
            ("test", self._test, 1),
        ):
            labels = order[spool.labels].astype(label_dtype(len(classes)))
            self._note_missing(classes, labels, "training" if split == "train" else "test")
            number = min(max(number, self._least_shards(spool)), len(spool))
            for file, span in shard_spans(split, len(spool), number):
                writer.write(split, file, spool.rows(span, scale), labels[span])
        self.close()
        shutil.rmtree(self._spools)
        return writer.finish(name, scale)

    def _note_missing(self, classes: tuple[str, ...], labels: Ints, split: str) -> None:
        """Add a notice of the classes that have no rows of a split."""
        counts = np.bincount(labels, minlength=len(classes))
        missing = [name for name, count in zip(classes, counts, strict=True) if not count]
        if missing:
            self.notices.append(f"no {split} rows of the classes: {some_of(missing)}")

    def close(self) -> None:
        """Close the files. Idempotent."""
        for file in (self._train, self._test, self.rejected):
            file.close()

    def _least_shards(self, spool: Spool) -> int:
        """Number of shards of at most 64 MiB."""
        return -(-len(spool) * math.prod(self._source.shape) // _SHARD_BYTES)

    def _scale(self) -> Columns | None:
        """How numbers become pixels; named columns have a scale even if it changes nothing."""
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

    def _scale_of_whole_numbers(self, greatest: float) -> Columns | None:
        """One factor for all columns if the numbers are small, so that equal ones stay equal."""
        names = self._source.names
        small = 0 < greatest <= _SMALL
        if not names and not small:
            return None
        columns, high = len(names) or 1, greatest if small else 255.0
        return Columns(names=names, low=(0.0,) * columns, high=(high,) * columns)
