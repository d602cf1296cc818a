"""Open a source of rows by its kind, to import it or to classify its rows."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

from distsgd.data.columns import FLOATS
from distsgd.data.importing.csv_file import open_csv
from distsgd.data.importing.images import open_image_folder
from distsgd.data.importing.npz import open_npz
from distsgd.data.importing.parquet import open_parquet
from distsgd.data.importing.source import ImportOptions, Source
from distsgd.data.text_files import TEXTS, kind_of, require_file
from distsgd.errors import SourceError, UsageError, machine_trouble
from distsgd.spelling import spelling

__all__ = ["open_source"]


_MOST_NUMBERS = 2**24
"""Numbers of a row: those of a colour image of 2,300 x 2,300."""


def open_source(path: Path, test: Path | None, options: ImportOptions) -> Source:
    """Open a file or folder according to its kind.

    Args:
        path: a .parquet, .csv or .npz file; a folder of Parquet files (train-*.parquet,
            test-*.parquet) or of images by class.
        test: a file of the same kind with the test rows.
        options: which columns are what, and how to read them.

    Raises:
        SourceError: it is missing or cannot be read.
        StorageError: the machine keeps it from being read.
        UsageError: it is not clear which column is what.
    """
    for one in (path, test):
        if one is not None and not one.exists():
            raise SourceError(f"there is no file or folder {one}", "Check the path")
    try:
        for one in (path, test):
            if one is not None:
                require_file(one)
        source = _open(path, test, options)
    except OSError as error:
        raise machine_trouble(error, error.filename or path) or SourceError(
            f"{error.filename or path} cannot be read: {error.strerror or error}", "Check it"
        ) from None
    _check_width(path, prod(source.shape))
    if len(source.shape) == 3 or options.shape is not None:
        _refuse_floats(options)
    if options.shape is None:
        return source
    if prod(options.shape) != prod(source.shape):
        raise UsageError(
            f"{spelling().given('shape', options.shape)} does not match "
            f"{prod(source.shape)} numbers a row",
            "Give a shape of as many numbers",
        )
    return replace(source, shape=options.shape, names=())


def _refuse_floats(options: ImportOptions) -> None:
    if options.values == FLOATS:
        raise UsageError(
            f"{spelling().given('values', FLOATS)} does not go with images, which are kept as "
            "pixels",
            "Leave it out",
        )


def _name(argument: str) -> str:
    return spelling().setting(argument)


def _check_width(path: Path, width: int) -> None:
    if not width:
        raise SourceError(f"the rows of {path} have no numbers", "Check the file")
    if width > _MOST_NUMBERS:
        raise UsageError(
            f"the rows of {path} would have {width} numbers, and at most {_MOST_NUMBERS} are "
            "supported",
            f"Give shorter ones; for images, a smaller {spelling().setting('size')}",
        )


def _open(path: Path, test: Path | None, options: ImportOptions) -> Source:
    if path.is_dir():
        return _open_folder(path, test, options)
    if test is not None and test.is_dir():
        raise SourceError(f"{_name('test')} {test} is a folder, and {path} a file", "Give a file")
    kind = kind_of(path)
    if kind == ".parquet":
        return open_parquet([path], [test] if test else [], options)
    if kind in TEXTS:
        return open_csv(path, test, options)
    if kind == ".npz":
        if test is not None:
            raise UsageError(
                f"{_name('test')} does not go with an NPZ file",
                "Put all arrays into one file: x_test, y_test",
            )
        _refuse_columns(options, "an NPZ file")
        return open_npz(path, options)
    raise SourceError(
        f"{path} is neither .parquet, .csv nor .npz, nor a folder", "Give one of these"
    )


def _refuse_columns(options: ImportOptions, what: str) -> None:
    for name in ("drop", "category", "weight"):
        if getattr(options, name):
            raise UsageError(
                f"{_name(name)} does not go with {what}, which has no named columns", "Leave it out"
            )


def _open_folder(folder: Path, test: Path | None, options: ImportOptions) -> Source:
    files = sorted(folder.glob("*.parquet"))
    if not files:
        if test is not None:
            raise UsageError(
                f"{_name('test')} does not go with a folder of images",
                "Put the images into train/ and test/ of one folder",
            )
        _refuse_columns(options, "a folder of images")
        return open_image_folder(folder, options)
    tests = sorted(test.glob("*.parquet")) if test and test.is_dir() else [test] if test else []
    if not tests:
        tests = [path for path in files if path.name.startswith("test")]
    files = [path for path in files if path not in tests]
    train = [path for path in files if path.name.startswith("train")]
    if not (train or files):
        raise SourceError(f"{folder} has no Parquet file of training rows", "Check the folder")
    return open_parquet(train or files, tests, options)
