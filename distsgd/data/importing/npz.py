"""NPZ: arrays of images or numbers and of labels, streamed from the archive."""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from distsgd.data.importing.source import (
    LARGEST,
    Batch,
    ImportOptions,
    Rejected,
    Source,
    plain_label,
    rows_at_once,
)
from distsgd.data.importing.table_columns import suggestion
from distsgd.data.text_files import nearest, some_of
from distsgd.errors import SourceError, UsageError, machine_trouble

__all__ = ["open_npz", "rows_of_npz"]

_PAIRS = (("x_train", "y_train", "x_test", "y_test"),
          ("train_images", "train_labels", "test_images", "test_labels"),
          ("x_train", "t_train", "x_test", "t_test"))  # fmt: skip
_VALUES = ("x", "images", "image", "data", "features")
_LABELS = ("y", "labels", "label", "target", "targets")


class _Array:
    """An array in an archive, of which only the header has been read.

    Args:
        path: the archive.
        name: name of the array.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self.name = path, name
        with self._open() as file:
            self.shape, self._fortran, self.dtype = self._header(file)
        if min(self.shape, default=0) < 0:
            raise ValueError(f"its array {name!r} has the shape {self.shape}")
        if self.dtype.hasobject:
            raise SourceError(
                f"the array '{name}' of {path} holds Python objects, which are never unpickled",
                "Save it as an array of numbers or of fixed-length text",
            )
        if not self.shape:
            raise SourceError(f"'{name}' of {path} is one number, not an array of rows", "Check it")

    def __len__(self) -> int:
        return int(self.shape[0])

    def _open(self) -> IO[bytes]:
        return zipfile.ZipFile(self._path).open(f"{self.name}.npy")

    @staticmethod
    def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        return read(file)

    def parts(self, most: int) -> Iterator[NDArray[Any]]:
        """Its rows, at most ``most`` at a time."""
        if self._fortran and len(self.shape) > 1:
            yield from self._parts_of_columns(most)
            return
        size = self.dtype.itemsize * math.prod(self.shape[1:])
        with self._open() as file:
            self._header(file)
            for low in range(0, len(self), most):
                rows = min(most, len(self) - low)
                content = file.read(rows * size)
                if len(content) < rows * size:
                    raise SourceError(f"'{self.name}' of {self._path} is cut short", "Check it")
                yield np.frombuffer(content, self.dtype).reshape(rows, *self.shape[1:])

    def _parts_of_columns(self, most: int) -> Iterator[NDArray[Any]]:
        """The rows of a column-major array, which is unpacked into a file and mapped."""
        with tempfile.TemporaryFile() as unpacked:
            with self._open() as file:
                self._header(file)
                shutil.copyfileobj(file, unpacked)
            unpacked.flush()
            if unpacked.tell() < self.dtype.itemsize * math.prod(self.shape):
                raise SourceError(f"'{self.name}' of {self._path} is cut short", "Check it")
            whole = np.memmap(unpacked, self.dtype, "r", shape=self.shape, order="F")
            for low in range(0, len(self), most):
                yield np.ascontiguousarray(whole[low : low + most])


def open_npz(path: Path, options: ImportOptions) -> Source:
    """Open an archive with the arrays x_train, y_train, x_test, y_test, or x and y.

    Raises:
        SourceError: it cannot be read, or its arrays do not match.
        UsageError: it is not clear which array is what.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        chosen = _choose(names, options, path)
        arrays = [_Array(path, name) for name in chosen]
    except (zipfile.BadZipFile, OSError, ValueError, KeyError) as error:
        raise machine_trouble(error, path) or SourceError(
            f"{path} is not a readable NPZ file: {error}", "Check it"
        ) from None
    for values, labels in zip(arrays[::2], arrays[1::2], strict=True):
        if len(values) != len(labels) or values.shape[1:] != arrays[0].shape[1:]:
            raise SourceError(
                f"'{values.name}' {values.shape} and '{labels.name}' {labels.shape} of {path} do "
                "not match",
                "They need equally many rows, and train and test the same shape",
            )
        if values.dtype.kind not in "biuf":
            raise SourceError(
                f"the array '{values.name}' of {path} holds {values.dtype}, not numbers",
                "Save it as an array of numbers",
            )
    plain = all(values.dtype == np.uint8 for values in arrays[::2])
    layout = _Layout(arrays[0].shape[1:], path, plain)
    return Source(
        shape=layout.shape,
        train=lambda: _read(path, arrays[0], arrays[1], layout),
        test=(lambda: _read(path, arrays[2], arrays[3], layout)) if len(arrays) == 4 else None,
        rows=sum(len(values) for values in arrays[::2]),
        pixels=plain and len(layout.shape) == 3,
        label=arrays[1].name,
        features=(f"{arrays[0].name} ({math.prod(layout.shape)} numbers)",),
    )


def rows_of_npz(path: Path, shape: tuple[int, ...], width: int) -> Iterator[NDArray[Any]]:
    """The rows to classify of an archive: its only array of such rows, or the usual one of several.

    Args:
        path: the archive.
        shape: shape of the model's examples.
        width: numbers of a row.

    Returns:
        parts of shape (rows, width), of any dtype of numbers.

    Raises:
        SourceError: it cannot be read.
        UsageError: it has no such array.
    """
    usual = ("x", "x_test", "test_images", *_VALUES, "x_train", "train_images")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        fitting = []
        for array in (_Array(path, name) for name in names):
            if array.dtype.kind in "biuf" and array.shape[1:]:
                layout = _Layout(array.shape[1:], path, plain=True)
                if layout.shape in (shape, (width,)):
                    fitting.append((array, layout))
        fitting.sort(
            key=lambda one: usual.index(one[0].name.lower()) if one[0].name.lower() in usual else 99
        )
        if not fitting:
            raise UsageError(
                f"{path} has no array of shape (rows, {width})", f"Its arrays: {some_of(names)}"
            )
        array, layout = fitting[0]
        for part in array.parts(rows_at_once(8 * width)):
            yield layout.flat(part)
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError, zlib.error) as error:
        raise machine_trouble(error, path) or SourceError(
            f"{path} is not a readable NPZ file: {error}", "Check it"
        ) from None


def _choose(names: list[str], options: ImportOptions, path: Path) -> list[str]:
    lowered = {name.lower(): name for name in names}
    if options.image is None and options.label is None:
        for pairs in _PAIRS:
            if all(name in lowered for name in pairs):
                return [lowered[name] for name in pairs]
    found = []
    for chosen, usual, argument in (
        (options.image, _VALUES, "image"), (options.label, _LABELS, "label"),
    ):  # fmt: skip
        fitting = [chosen] if chosen in names else [lowered[n] for n in usual if n in lowered]
        if (chosen is not None and chosen not in names) or len(fitting) != 1:
            near = nearest(chosen, names) if chosen is not None else None
            meant = f"Did you mean {suggestion(argument, near)}? " if near else ""
            raise UsageError(
                f"it is not clear which array of {path} holds the {argument}s",
                f"{meant}Name it: {suggestion(argument, 'NAME')}. Its arrays: {some_of(names)}",
            )
        found.append(str(fitting[0]))
    return found


class _Layout:
    """How the rows of an array become examples: images channel by channel, all else flat.

    Args:
        shape: shape of a row.
        path: the archive, for errors.
        plain: whether all numbers are uint8 and stay so; otherwise all become float64.
    """

    def __init__(self, shape: tuple[int, ...], path: Path, plain: bool) -> None:
        self._last, self._plain = False, plain
        self.shape: tuple[int, ...]
        if len(shape) == 2:
            self.shape = (1, *shape)
        elif len(shape) == 3 and shape[-1] in (1, 3):
            self.shape, self._last = (shape[-1], *shape[:-1]), True
        elif len(shape) in (1, 3):
            self.shape = shape
        else:
            raise SourceError(
                f"examples of shape {shape} in {path} are neither images nor rows of numbers",
                "Give arrays of (rows, features), (rows, h, w), or (rows, h, w, channels)",
            )

    def flat(self, values: NDArray[Any]) -> NDArray[Any]:
        """The rows, shape (rows, features)."""
        if self._last:
            values = np.moveaxis(values, -1, 1)
        flat = np.ascontiguousarray(values.reshape(len(values), -1))
        return flat if self._plain else flat.astype(np.float64)


def _read(path: Path, values: _Array, labels: _Array, layout: _Layout) -> Iterator[Batch]:
    low, most = 0, rows_at_once(8 * math.prod(values.shape[1:]))
    try:
        for part, some in zip(values.parts(most), labels.parts(most), strict=True):
            yield _batch(path, low, layout.flat(part), some.reshape(len(some), -1))
            low += len(part)
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error) as error:
        raise machine_trouble(error, path) or SourceError(
            f"{path} cannot be read to its end: {error}", "Check the file"
        ) from None


def _batch(path: Path, low: int, values: NDArray[Any], labels: NDArray[Any]) -> Batch:
    if labels.shape[1] != 1:
        raise SourceError(
            f"the labels of {path} have {labels.shape[1]} numbers a row, not 1",
            "Save the number of the class",
        )
    sound = (np.abs(values) <= LARGEST).all(axis=1)
    kept, found, rejected = [], [], []
    for row, label in enumerate(labels[:, 0].tolist()):
        try:
            if not sound[row]:
                raise ValueError("it has a value that is not a finite number")
            found.append(plain_label(label))
            kept.append(row)
        except ValueError as error:
            rejected.append(Rejected(f"{path.name} row {low + row}", str(error)))
    return Batch(values if len(kept) == len(values) else values[kept], found, rejected)
