"""Anonymous files: memory that processes share by passing a descriptor, and that dies with them."""

from __future__ import annotations

import fcntl
import os

import numpy as np

__all__ = ["LINE", "anonymous_file", "row_bytes"]

LINE = 64
"""Bytes of a cache line."""

_F_ADD_SEALS, _FIXED_SIZE = 1033, 0x0001 | 0x0002 | 0x0004  # seal, shrink, grow: linux/fcntl.h


def anonymous_file(size: int) -> int:
    """A file without a name, of a fixed size.

    Raises:
        OSError: the system refuses it.
    """
    file = os.memfd_create("distsgd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, size)
        fcntl.fcntl(file, _F_ADD_SEALS, _FIXED_SIZE)
    except OSError:
        os.close(file)
        raise
    return file


def row_bytes(parameters: int, dtype: str) -> int:
    """Bytes of a vector, a whole number of cache lines."""
    used = parameters * np.dtype(dtype).itemsize
    return -(-used // LINE) * LINE
