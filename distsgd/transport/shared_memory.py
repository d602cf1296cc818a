"""Memory that one worker and one server share: W for the worker, and the sums it pushes.

It is an anonymous file that lives as long as somebody holds it, so nothing is left behind whatever
dies, and nobody can open it who was not handed it.

There are no locks. W is written by the server while the worker waits for work, and the sums by the
worker while it has work; a message on the socket between them says whose turn it is.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from contextlib import suppress

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.errors import ChannelClosed
from distsgd.transport.framing import Shape

__all__ = ["NoSharedMemory", "SharedMemory"]

_LINE = 64  # bytes of a cache line
_F_ADD_SEALS, _FIXED_SIZE = 1033, 0x0001 | 0x0002 | 0x0004  # seal, shrink, grow: linux/fcntl.h
_MADE, _REFUSED = b".", b"-"


class NoSharedMemory(ChannelClosed):
    """The system gives no memory to share: an old kernel, or a filter of system calls."""


class SharedMemory:
    """The memory of one connection, as arrays.

    Args:
        file: descriptor of the anonymous file; closed here.
        shape: how large messages are.

    Attributes:
        weights: the server's range of flat W as leased, shape (parameters,).
        sums: node sums, shape (most_nodes, parameters).
    """

    def __init__(self, file: int, shape: Shape) -> None:
        try:
            memory = mmap.mmap(file, 0)
        finally:
            os.close(file)
        dtype = np.dtype(shape.dtype)
        row = _row_bytes(shape) // dtype.itemsize
        rows = np.frombuffer(memory, dtype).reshape(1 + shape.most_nodes, row)
        self.weights: Floats = rows[0, : shape.parameters]
        self.sums: Floats = rows[1:, : shape.parameters]

    @classmethod
    def offer(cls, connection: socket.socket, shape: Shape) -> SharedMemory:
        """Make it, and hand it to the worker on the other end of a Unix socket.

        Raises:
            NoSharedMemory: it cannot be made, which the worker hears too.
            ChannelClosed: the worker has gone.
        """
        try:
            file = _anonymous_file(_row_bytes(shape) * (1 + shape.most_nodes))
        except OSError as error:
            with suppress(OSError):
                connection.sendall(_REFUSED)
            raise NoSharedMemory(f"memory cannot be shared: {error.strerror}") from None
        try:
            socket.send_fds(connection, [_MADE], [file])
        except OSError as error:
            os.close(file)
            raise ChannelClosed(f"memory cannot be shared: {error}") from None
        return cls(file, shape)

    @classmethod
    def take(cls, connection: socket.socket, shape: Shape) -> SharedMemory:
        """Take it from the server on the other end.

        Raises:
            NoSharedMemory: the server cannot make it.
            ChannelClosed: it does not come, or has another size.
        """
        try:
            said, files, _, _ = socket.recv_fds(connection, 1, 1)
        except OSError:
            said, files = b"", []
        if said == _REFUSED:
            raise NoSharedMemory("the parameter server cannot share memory")
        if not files or os.fstat(files[0]).st_size != _row_bytes(shape) * (1 + shape.most_nodes):
            raise ChannelClosed("the parameter server has not shared its memory")
        return cls(files[0], shape)


def _anonymous_file(size: int) -> int:
    """A file without a name, of a size that nobody can change.

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


def _row_bytes(shape: Shape) -> int:
    """Bytes of a row, a whole number of cache lines."""
    used = shape.parameters * np.dtype(shape.dtype).itemsize
    return -(-used // _LINE) * _LINE
