"""Messages between workers and servers as bytes of a stream.

A push is a header, the losses of its slots, and either the sums of its nodes or the encoded
gradient. The reply is a header and W. Where memory is shared, sums and W do not travel.

The coordinator sends its decisions to the followers as messages of a length and a JSON list of
entries, without those that followers do not need.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.messages import (
    Applied,
    Decision,
    Dismiss,
    Dropped,
    Grant,
    Lease,
    Message,
    Push,
    ResidualReport,
    ResidualRequest,
)
from distsgd.core.model import SlotLoss
from distsgd.core.server import Keep
from distsgd.errors import ChannelClosed
from distsgd.transport.base import Decode, Membership, Reply, Work
from distsgd.transport.team_memory import TeamMemory, TeamShape

__all__ = [
    "FOLLOWER",
    "Entry",
    "MessageReader",
    "Shape",
    "read_log",
    "receive",
    "receive_reply",
    "send",
    "send_message",
    "send_reply",
    "set_options",
    "write_log",
]


_PUSH = struct.Struct("<7qIII")
_SIZES = struct.Struct("<III")  # the end of a push's header
_LOSS = struct.Struct("<3d")
_REPLY = struct.Struct("<7q")
# In the place of a lease's step: nothing, about a residual, or a place in a team.
_NOTHING, _RESIDUAL, _TEAM = -1, -2, -3
_MEMBERSHIP = struct.Struct("<7q")
_MOST_FILES = 250  # that can be passed at once, nearly
_PLAIN = 0xFFFFFFFF  # in the place of a size: the sums themselves


@dataclass(frozen=True)
class Shape:
    """How large messages are.

    Attributes:
        parameters: length of the range of flat W that the server has.
        dtype: its dtype.
        most_nodes: rows of the largest push.
        most_losses: losses of the largest push.
        whole: length of flat W.
        halves: buffers of so many rows, which pushes use in turn; see `Policy.halves`.
    """

    parameters: int
    dtype: str
    most_nodes: int
    most_losses: int
    whole: int
    halves: int = 1

    def half(self, sums: Floats, serial: int) -> Floats:
        """The rows for the push that answers a lease with a serial."""
        first = serial % self.halves * self.most_nodes
        return sums[first : first + self.most_nodes]


def receive(connection: socket.socket, buffer: memoryview) -> None:
    """Fill the buffer.

    Raises:
        ChannelClosed: the peer has gone.
    """
    while buffer:
        try:
            count = connection.recv_into(buffer)
        except OSError:
            count = 0
        if count == 0:
            raise ChannelClosed("the peer of a channel has gone")
        buffer = buffer[count:]


def _receive_struct(connection: socket.socket, layout: struct.Struct) -> tuple[int, ...]:
    content = bytearray(layout.size)
    receive(connection, memoryview(content))
    return layout.unpack(content)


def send(connection: socket.socket, *parts: bytes | memoryview) -> None:
    """Send all.

    Raises:
        ChannelClosed: the peer has gone.
    """
    try:
        for part in parts:
            connection.sendall(part)
    except OSError:
        raise ChannelClosed("the peer of a channel has gone") from None


def _bytes_of(array: Floats) -> memoryview:
    # A view of nothing cannot be cast.
    return np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(bytearray())


def send_message(
    connection: socket.socket, message: Message | None,
    shared: Callable[[int], Floats] | None = None,
) -> None:  # fmt: skip
    """Send a message, or None to ask for work.

    Args:
        connection: to the server.
        message: what to send.
        shared: gives the place for the sums of a lease with a serial; None if they are sent.
    """
    if message is None:
        send(connection, _PUSH.pack(_NOTHING, *(0,) * 9))
        return
    if isinstance(message, ResidualReport):
        payload = message.residual.tobytes()
        header = _PUSH.pack(_RESIDUAL, *(0,) * 5, message.serial, 0, 0, len(payload))
        send(connection, header + payload)
        return
    push = message
    losses = b"".join([_LOSS.pack(one.loss, one.correct, one.examples) for one in push.losses])
    size = _PLAIN if push.encoded is None else len(push.encoded)
    words = _PUSH.pack(*push.lease, len(push.losses), len(push.gradients), size) + losses
    if push.encoded is not None:
        send(connection, words + push.encoded)
    elif shared is None:
        send(connection, words, _bytes_of(push.gradients))
    else:
        place = shared(push.lease.serial)
        if not np.may_share_memory(push.gradients, place):
            place[: len(push.gradients)] = push.gradients
        send(connection, words)


def send_membership(connection: socket.socket, membership: Membership) -> None:
    """Send a worker of this node its place in a team, with the descriptors of the memory.

    Raises:
        ChannelClosed: the worker has gone.
    """
    shape = membership.memory.shape
    send(connection, _REPLY.pack(_TEAM, membership.number, *(0,) * 5))
    sizes = _MEMBERSHIP.pack(
        shape.members, shape.parameters, np.dtype(shape.dtype).itemsize, shape.states, shape.rows,
        shape.losses, shape.records,
    )  # fmt: skip
    try:
        socket.send_fds(connection, [sizes], membership.memory.files)
    except OSError:
        raise ChannelClosed("the peer of a channel has gone") from None


def _receive_membership(connection: socket.socket, number: int, dtype: str) -> Membership:
    """Its place in a team, for a worker.

    Raises:
        ChannelClosed: the server has gone.
    """
    try:
        said, files, _, _ = socket.recv_fds(
            connection, _MEMBERSHIP.size, _MOST_FILES, socket.MSG_CMSG_CLOEXEC
        )
    except OSError:
        said, files = b"", []
    if len(said) != _MEMBERSHIP.size:
        raise ChannelClosed("the parameter server has not shared the memory of a team")
    members, parameters, _, *rest = _MEMBERSHIP.unpack(said)
    shape = TeamShape(members, parameters, dtype, *rest)
    return Membership(TeamMemory.attach(files, shape), number)


def send_reply(
    connection: socket.socket, reply: Work | ResidualRequest | None, *, shared: bool = False
) -> None:
    """Send a lease, with W if that is not shared; a request; or the dismissal."""
    if reply is None:
        send(connection, _REPLY.pack(_NOTHING, *(0,) * 6))
    elif isinstance(reply, ResidualRequest):
        send(connection, _REPLY.pack(_RESIDUAL, *(0,) * 5, reply.serial))
    elif shared:
        send(connection, _REPLY.pack(*reply[0]))
    else:
        send(connection, _REPLY.pack(*reply[0]), _bytes_of(reply[1]))


def receive_reply(connection: socket.socket, weights: Floats, shared: bool) -> Reply | None:
    """Wait for a reply; the W of a lease is then in ``weights`` (it is there if it is shared)."""
    lease = _receive_struct(connection, _REPLY)
    if lease[0] == _NOTHING:
        return None
    if lease[0] == _RESIDUAL:
        return ResidualRequest(lease[-1])
    if lease[0] == _TEAM:
        return _receive_membership(connection, lease[1], weights.dtype.name)
    if not shared:
        receive(connection, _bytes_of(weights))
    return Lease(*lease), weights


class MessageReader:
    """Reads a worker's messages into buffers that are made once.

    Args:
        shape: how large they are.
        decode: decodes compressed gradients into a number of rows.
        shared: where sums are that are not sent; None if they are.
    """

    def __init__(self, shape: Shape, decode: Decode, shared: Floats | None = None) -> None:
        self._decode, self._shared, self._dtype = decode, shared is not None, shape.dtype
        self._shape = shape
        if shared is None:
            rows = shape.halves * shape.most_nodes
            shared = np.empty((rows, shape.parameters), dtype=shape.dtype)
        self._sums = shared
        self._most = max(self._sums.nbytes, shape.whole * self._sums.itemsize)

    def read(self, connection: socket.socket) -> tuple[Message | None, int]:
        """The next message, valid until the following call, or None; and the bytes it took.

        Raises:
            ChannelClosed: the peer has gone, or its message is invalid.
        """
        content = bytearray(_PUSH.size)
        receive(connection, memoryview(content))
        content.extend(bytes(self.length(content) - _PUSH.size))
        receive(connection, memoryview(content)[_PUSH.size :])
        message, size = self.parse(content)
        if isinstance(message, Push) and message.encoded is None and not self._shared:
            receive(connection, _bytes_of(message.gradients))
        return message, size

    def length(self, content: bytes | bytearray) -> int:
        """How long a message is without sums that are sent plain, as far as is known.

        Raises:
            ChannelClosed: it is longer than any.
        """
        if len(content) < _PUSH.size:
            return _PUSH.size
        slots, nodes, size = _SIZES.unpack_from(content, _PUSH.size - _SIZES.size)
        payload = 0 if size == _PLAIN else size
        shape = self._shape
        if slots > shape.most_losses or nodes > shape.most_nodes or payload > self._most:
            raise ChannelClosed("a message larger than any push")
        return int(_PUSH.size + slots * _LOSS.size + payload)

    def parse(self, content: bytes | bytearray) -> tuple[Message | None, int]:
        """A whole message, and how many bytes it is with its sums; see `read`."""
        *fields, slots, nodes, size = _PUSH.unpack_from(content)
        if fields[0] == _NOTHING:
            return None, _PUSH.size
        after = _PUSH.size + slots * _LOSS.size
        rows = _LOSS.iter_unpack(memoryview(content)[_PUSH.size : after])
        losses = tuple([SlotLoss(loss, int(hits), int(count)) for loss, hits, count in rows])
        if fields[0] == _RESIDUAL:
            residual = np.frombuffer(memoryview(content)[after:], self._dtype)
            return ResidualReport(fields[-1], residual), len(content)
        lease = Lease(*fields)
        if size == _PLAIN:
            gradients = self._shape.half(self._sums, lease.serial)[:nodes]
            return Push(lease, losses, gradients), len(content) + gradients.nbytes
        payload = bytes(memoryview(content)[after:])
        return Push(lease, losses, self._decode(payload, nodes), payload), len(content)


_BUFFER_BYTES = 1 << 20
_BY_WINDOW = (b"cubic", b"reno")
"""Not BBR, which some machines use for all connections: it sends no faster than 2.9 times what it
has measured, and of a worker that sends 123 KB and then waits it measures little. Over 40 ms and
100 Mbit/s an exchange took 164 ms with it, 119 ms with these; with 1.2 MB 287 ms with any."""


def set_options(connection: socket.socket) -> None:
    """Set either end of a connection to send at once, and bursts at full speed; best effort."""
    if connection.family == socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        return  # TCP buffers grow by themselves unless their size is set
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with suppress(OSError):
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)[:3] != b"bbr":
            return
    for name in _BY_WINDOW:
        with suppress(OSError):  # not in this kernel, or only for root
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
            return


Entry = Decision | Keep

FOLLOWER = 1 << 31
"""What is added to the number of a follower, to tell it from a worker in the greeting."""

_LENGTH = struct.Struct("<I")


def _plain(entry: Entry) -> list[Any] | None:
    if isinstance(entry, Grant):
        return ["grant", entry.worker, tuple(entry.lease)]
    if isinstance(entry, Dropped):
        return ["dropped", entry.worker, tuple(entry.lease), entry.twice]
    if isinstance(entry, Dismiss):
        return ["dismiss", entry.worker]
    if isinstance(entry, Keep):
        return ["keep", entry.version]
    if isinstance(entry, Applied):
        answers = [(worker, tuple(lease)) for worker, lease in entry.contributions]
        return ["applied", entry.step, entry.version, entry.examples, answers, entry.requeued]
    return None


def _entry(plain: list[Any]) -> Entry:
    match plain:
        case ["grant", worker, lease]:
            return Grant(worker, Lease(*lease))
        case ["dropped", worker, lease, twice]:
            return Dropped(worker, Lease(*lease), twice)
        case ["dismiss", worker]:
            return Dismiss(worker)
        case ["keep", version]:
            return Keep(version)
        case ["applied", step, version, examples, answers, requeued]:
            contributions = tuple((worker, Lease(*lease)) for worker, lease in answers)
            pieces = tuple((place, at, first, last) for place, at, first, last in requeued)
            return Applied(step, 0, version, 0.0, 0, examples, 0.0, contributions, pieces, False)
    raise ValueError(f"no entry of the log: {plain}")


def write_log(connection: socket.socket, news: Callable[[], Iterable[Entry]]) -> None:
    """Send the entries that ``news`` returns, in a loop; it waits a while if there are none.

    Raises:
        ChannelClosed: the follower has gone.
    """
    while True:
        entries = [plain for plain in map(_plain, news()) if plain is not None]
        content = json.dumps(entries, separators=(",", ":")).encode()
        send(connection, _LENGTH.pack(len(content)) + content)


def read_log(connection: socket.socket) -> Iterator[list[Entry]]:
    """The entries as they come.

    Raises:
        ChannelClosed: the coordinator has gone.
    """
    while True:
        length = bytearray(_LENGTH.size)
        receive(connection, memoryview(length))
        content = bytearray(_LENGTH.unpack(length)[0])
        receive(connection, memoryview(content))
        yield [_entry(plain) for plain in json.loads(content)]
