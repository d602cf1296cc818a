"""Arrays from an untrusted .npz file as `numpy.savez` writes it.

Nothing is unpickled or decompressed, and every size in a header is compared with the size of the
file before memory is allocated: it never exceeds the size of the file.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

__all__ = ["ArrayArchive"]

_MOST_DIRECTORY = 1 << 22
"""Bytes of the list of arrays: more than 40,000."""

_END, _END_64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), 20
_LONGEST_HEADER = 1 << 12


class ArrayArchive(Mapping[str, NDArray[Any]]):
    """The arrays of a file by name, each read on access.

    Args:
        file: a seekable file.

    Raises:
        ValueError: it is no such archive, or sizes in it are wrong.
        zipfile.BadZipFile: it is no such archive.
        OSError: it cannot be read.
    """

    def __init__(self, file: IO[bytes]) -> None:
        size = file.seek(0, os.SEEK_END)
        _check_directory(file, size)
        self._archive = zipfile.ZipFile(file)
        self._members: dict[str, zipfile.ZipInfo] = {}
        total = 0
        for info in self._archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename or name in self._members:
                raise ValueError(f"it has {info.filename!r} twice, or as no array")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise ValueError(f"its array {name!r} is compressed")
            self._members[name] = info
            total += info.file_size
        if total > size:
            raise ValueError(f"its arrays have {total} bytes, and the file {size}")
        self.headers = {name: self._header(name) for name in self._members}

    def __iter__(self) -> Any:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, name: str) -> NDArray[Any]:
        with self._archive.open(self._members[name]) as file:
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
            return array

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, from its header alone."""
        return self.headers[name][0]

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype of an array, from its header alone."""
        return self.headers[name][1]

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype; raises ValueError if they do not match the size of the data."""
        info = self._members[name]
        with self._archive.open(info) as member:
            begin = io.BytesIO(member.read(_LONGEST_HEADER))
        if npy.read_magic(begin) != (1, 0):
            raise ValueError(f"its array {name!r} is of another format")
        shape, _, dtype = npy.read_array_header_1_0(begin)
        if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
            raise ValueError(f"its array {name!r} is of {dtype}")
        if any(type(n) is not int or n < 0 for n in shape):
            raise ValueError(f"its array {name!r} has the shape {shape}")
        if math.prod(shape) * dtype.itemsize != info.file_size - begin.tell():
            raise ValueError(
                f"its array {name!r} of shape {shape} and {dtype} is not of "
                f"{info.file_size - begin.tell()} bytes"
            )
        return tuple(shape), dtype


def _check_directory(file: IO[bytes], size: int) -> None:
    """Check the list of arrays at the end of an archive.

    Raises:
        ValueError: it is too long, misplaced or missing.
    """
    at = max(0, size - _END.size - _LOCATOR - _END_64.size)
    file.seek(at)
    tail = file.read(_END.size + _LOCATOR + _END_64.size)
    end = tail[-_END.size :]
    if len(end) < _END.size or not end.startswith(b"PK\5\6"):
        raise ValueError("it has no end")
    *_, length, begin, comment = _END.unpack(end)
    last = size - _END.size
    if tail[-_END.size - _LOCATOR :].startswith(b"PK\6\7"):
        if len(tail) < _END.size + _LOCATOR + _END_64.size or not tail.startswith(b"PK\6\6"):
            raise ValueError("it has no end")
        *_, length, begin = _END_64.unpack(tail[: _END_64.size])
        last = at
    if comment or length > _MOST_DIRECTORY or begin + length != last:
        raise ValueError("its list of arrays is not where it should be")
