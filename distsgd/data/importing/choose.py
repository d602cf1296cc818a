"""What kind of source a path is."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

from distsgd.data.importing.csv_file import open_csv
from distsgd.data.importing.images import open_image_folder
from distsgd.data.importing.npz import open_npz
from distsgd.data.importing.parquet import open_parquet
from distsgd.data.importing.source import Source, Wishes
from distsgd.data.text_files import TEXTS, kind_of, require_file
from distsgd.errors import SourceError, UsageError, machine_trouble

__all__ = ["open_source"]

_MOST_NUMBERS = 2**24
"""Of a row: an image of 2,300 x 2,300 in colours."""


def open_source(path: Path, test: Path | None, wishes: Wishes) -> Source:
    """Open a file or folder by what it is.

    Args:
        path: a .parquet, .csv or .npz file; a folder of Parquet files (train-*.parquet,
            test-*.parquet) or of images by class.
        test: a file of the same kind with the test rows.
        wishes: what the user has said.

    Raises:
        SourceError: there is none, or it cannot be read.
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
        source = _open(path, test, wishes)
    except OSError as error:
        raise machine_trouble(error, error.filename or path) or SourceError(
            f"{error.filename or path} cannot be read: {error.strerror or error}", "Check it"
        ) from None
    _check_width(path, prod(source.shape))
    if wishes.shape is None:
        return source
    if prod(wishes.shape) != prod(source.shape):
        raise UsageError(
            f"--shape {'x'.join(map(str, wishes.shape))} does not go with "
            f"{prod(source.shape)} numbers a row",
            "Give one of as many",
        )
    return replace(source, shape=wishes.shape, names=())


def _check_width(path: Path, width: int) -> None:
    if not width:
        raise SourceError(f"the rows of {path} have no numbers", "Check the file")
    if width > _MOST_NUMBERS:
        raise UsageError(
            f"the rows of {path} would have {width} numbers, and {_MOST_NUMBERS} are the most",
            "Give smaller ones; of images, a smaller --size",
        )


def _open(path: Path, test: Path | None, wishes: Wishes) -> Source:
    if path.is_dir():
        return _open_folder(path, test, wishes)
    if test is not None and test.is_dir():
        raise SourceError(f"--test {test} is a folder, and {path} a file", "Give a file")
    kind = kind_of(path)
    if kind == ".parquet":
        return open_parquet([path], [test] if test else [], wishes)
    if kind in TEXTS:
        return open_csv(path, test, wishes)
    if kind == ".npz":
        if test is not None:
            raise UsageError(
                "--test does not go with an NPZ file", "Put all arrays into one: x_test, y_test"
            )
        _refuse_drop(wishes, "an NPZ file")
        return open_npz(path, wishes)
    raise SourceError(
        f"{path} is neither .parquet, .csv nor .npz, nor a folder", "Give one of these"
    )


def _refuse_drop(wishes: Wishes, what: str) -> None:
    if wishes.drop:
        raise UsageError(
            f"--drop does not go with {what}, which has no columns with names", "Leave it out"
        )


def _open_folder(folder: Path, test: Path | None, wishes: Wishes) -> Source:
    files = sorted(folder.glob("*.parquet"))
    if not files:
        if test is not None:
            raise UsageError(
                "--test does not go with a folder of images", "Make it train/ and test/ in one"
            )
        _refuse_drop(wishes, "a folder of images")
        return open_image_folder(folder, wishes)
    tests = sorted(test.glob("*.parquet")) if test and test.is_dir() else [test] if test else []
    if not tests:
        tests = [path for path in files if path.name.startswith("test")]
    files = [path for path in files if path not in tests]
    train = [path for path in files if path.name.startswith("train")]
    if not (train or files):
        raise SourceError(f"{folder} has no Parquet file of training rows", "Check the folder")
    return open_parquet(train or files, tests, wishes)
