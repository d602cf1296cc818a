"""The work of an import: read each row once into a file, then write all of them as shards."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Ints
from distsgd.data.atomic import Progress
from distsgd.data.columns import FLOATS, PIXELS, Columns
from distsgd.data.importing.column_survey import ColumnSurvey
from distsgd.data.importing.source import Batch, ImportOptions, Source
from distsgd.data.importing.spool import ClassCodes, ColumnStatistics, RejectedRows, Spool
from distsgd.data.manifest import Manifest
from distsgd.data.shards import DatasetWriter, label_dtype, shard_spans
from distsgd.data.standardising import SAMPLE_ROWS, standardised
from distsgd.data.text_files import some_of
from distsgd.errors import DatasetError
from distsgd.spelling import spelling

__all__ = ["REJECTED", "RowImport"]

REJECTED = "rejected.csv"
_SHARD_BYTES = 64 * 2**20
_SMALL = 127
"""Whole numbers up to this one use fewer than half of the 256 steps."""


_LEAST_PIXELS = 64
"""Columns that an image has at least: 8 x 8."""

_NUMBERS_AT_ONCE = 1 << 20

DEFAULTS = ImportOptions()

Array = NDArray[np.float64]


def _look_like_pixels(sample: NDArray[Any]) -> bool:
    """Whether whole numbers from 0 to 255 are probably pixels, not columns of a table.

    They are if they are many, and most columns that vary reach half of the greatest number.

    Args:
        sample: some of the rows, shape (rows, columns).
    """
    if sample.shape[1] < _LEAST_PIXELS:
        return False
    greatest = sample.max(axis=0)
    varying = greatest[greatest > sample.min(axis=0)]
    return bool(len(varying) and np.mean(2 * varying >= greatest.max()) > 0.5)


class _Words:
    """The words of a source that training rows have, and their places in sorted order.

    Args:
        source: the rows.

    Attributes:
        seen: column -> the codes of its words in training rows.
    """

    def __init__(self, source: Source) -> None:
        self._codes, self._columns = source.words, math.prod(source.shape)
        self.seen: dict[int, set[float]] = {column: set() for column in source.words}

    def _sorted(self, column: int) -> list[str]:
        """The words of a column, in order."""
        words = self._codes[column].words
        return sorted(words[int(code)] for code in self.seen[column] if not math.isnan(code))

    @property
    def of_columns(self) -> tuple[tuple[str, ...], ...]:
        """The words of each column, none for a column of numbers; empty if all are such."""
        if not self._codes:
            return ()
        return tuple(
            tuple(self._sorted(column)) if column in self._codes else ()
            for column in range(self._columns)
        )

    def numbers(self, values: NDArray[Any]) -> NDArray[Any]:
        """The same rows, with the place of each word, -1 for none, for its code."""
        if not self._codes:
            return values
        values = np.array(values)
        for column, codes in self._codes.items():
            places = {word: place for place, word in enumerate(self._sorted(column))}
            table = np.array([*(places.get(word, -1) for word in codes.words), -1.0])
            found = np.where(np.isnan(values[:, column]), len(codes.words), values[:, column])
            values[:, column] = table[found.astype(np.intp)]
        return values


class RowImport:
    """Reads rows into spools, then writes them into shards.

    Args:
        source: the rows.
        folder: an empty folder, which becomes the dataset.
        test_share: share of the rows that are drawn for testing, if the source does not say which.
        seed: seed of that draw.
        options: what rows are to hold, and what is done about missing numbers.

    Attributes:
        rejected: rows that could not be used.
        notices: what the user should know about the columns, a line each.

    Raises:
        DatasetError: the class names of the source cannot be used.
    """

    def __init__(
        self,
        source: Source,
        folder: Path,
        test_share: float,
        seed: int,
        options: ImportOptions = DEFAULTS,
    ) -> None:
        self._source, self._folder, self._options = source, folder, options
        self._words = _Words(source)
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
            good, codes, weights = self._usable(batch)
            for_test = self._random.random(len(codes)) < (0 if source.test else self._share)
            own = None if weights is None else weights[~for_test]
            self._keep(good[~for_test], codes[~for_test], own)
            self._test.add(good[for_test], codes[for_test])
            progress("reading rows", self._seen, source.rows or 0)
        for batch in source.test() if source.test else ():
            good, codes, _ = self._usable(batch)
            self._test.add(good, codes)
            progress("reading rows", self._seen, source.rows or 0)
        self._train.flush()
        self._test.flush()
        self._require_rows()

    def _keep(self, values: NDArray[Any], codes: Ints, weights: Array | None) -> None:
        self._train.add(values, codes, weights)
        if values.dtype != np.uint8:
            self._statistics.add(values)
        for column, seen in self._words.seen.items():
            seen.update(values[:, column].tolist())

    def _usable(self, batch: Batch) -> tuple[NDArray[Any], Ints, Array | None]:
        """Values, class codes and weights of the rows that can be used; records the others."""
        good, codes, wrong = self._codes.codes(batch.labels)
        self.rejected.add(batch.rejected)
        self.rejected.add(wrong)
        self._seen += len(batch.labels) + len(batch.rejected)
        if good.all():
            return batch.values, codes, batch.weights
        weights = None if batch.weights is None else batch.weights[good]
        return batch.values[good], codes[good], weights

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
        for codes in self._source.words.values():
            codes.check(len(self._train) + len(self._test))
        columns = self._columns()
        widths = columns is not None and columns.words
        shape = (columns.features,) if columns is not None and widths else self._source.shape
        values = PIXELS if columns is None else columns.values
        row_bytes = math.prod(shape) * np.dtype(values).itemsize
        writer = DatasetWriter(self._folder, shape, classes)
        for split, spool, number in (
            ("train", self._train, shards),
            ("test", self._test, 1),
        ):
            labels = order[spool.labels].astype(label_dtype(len(classes)))
            self._note_missing(classes, labels, "training" if split == "train" else "test")
            weights = self._checked_weights() if split == "train" else None
            number = min(max(number, -(-len(spool) * row_bytes // _SHARD_BYTES)), len(spool))
            for file, span in shard_spans(split, len(spool), number):
                numbers = self._words.numbers(spool.values(span))
                rows = np.array(numbers, np.uint8) if columns is None else columns.rows(numbers)
                own = None if weights is None else weights[span]
                writer.write(split, file, rows, labels[span], own)
        self.close()
        shutil.rmtree(self._spools)
        return writer.finish(name, columns)

    def _checked_weights(self) -> Array | None:
        """The weights of the training rows.

        Raises:
            DatasetError: all are 0.
        """
        weights = self._train.weights
        if weights is not None and not weights.any():
            raise DatasetError("the weights of all training rows are 0", "Give others")
        return weights

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

    def _columns(self) -> Columns | None:
        """How numbers become features; named columns have a scale even if it changes nothing."""
        if self._source.pixels:
            return None
        images = len(self._source.shape) == 3
        total = len(self._train) + len(self._test) + self.rejected.count
        sample = self._train.sample(SAMPLE_ROWS)
        survey = ColumnSurvey(sample, total, self._source.names, tuple(self._source.words))
        if not images and self._chosen_values(sample) == FLOATS:
            return self._standardised(sample, survey)
        scale: Columns | None
        if self._source.words:
            scale = self._statistics.scale(self._source.names, False)
            scale = replace(survey.without_outliers(scale), words=self._words.of_columns)
        elif self._train.are_pixels and self._test.are_pixels:
            greatest = max(self._train.greatest, self._test.greatest)
            if not images:
                greatest = survey.greatest_without_outliers(greatest)
            scale = self._scale_of_whole_numbers(greatest)
        else:
            scale = survey.without_outliers(self._statistics.scale(self._source.names, images))
        if not images:
            self.notices += survey.notices(scale)
        return scale

    def _chosen_values(self, sample: NDArray[Any]) -> str:
        """What rows are to hold: as asked for, or pixels if the numbers look like some."""
        if self._options.values is not None:
            return self._options.values
        if self._train.are_bytes:
            return PIXELS
        whole = self._train.are_pixels and self._test.are_pixels and not self._source.words
        return PIXELS if whole and _look_like_pixels(sample) else FLOATS

    def _standardised(self, sample: NDArray[Any], survey: ColumnSurvey) -> Columns:
        spool, words = self._train, self._words

        def parts() -> Iterator[Array]:
            some = max(1, _NUMBERS_AT_ONCE // sample.shape[1])
            for low in range(0, len(spool), some):
                yield words.numbers(spool.values(slice(low, low + some)))

        columns = standardised(
            words.numbers(sample), parts, names=self._source.names, words=words.of_columns,
            fill=self._options.missing == "mean",
        )  # fmt: skip
        survey.note_clipped(columns, self._statistics.low, self._statistics.high)
        self.notices += survey.notices(None)
        return columns

    def _scale_of_whole_numbers(self, greatest: float) -> Columns | None:
        """One factor for all columns if the numbers are small, so that equal ones stay equal."""
        names = self._source.names
        small = 0 < greatest <= _SMALL
        if not names and not small:
            return None
        columns, high = len(names) or 1, greatest if small else 255.0
        return Columns(names=names, low=(0.0,) * columns, high=(high,) * columns)
