"""The coordinator's decisions as a stream of bytes, for the followers.

A message is its length and a JSON list of entries; what a follower has no use for is left out.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from distsgd.core.messages import Applied, Decision, Dismiss, Dropped, Grant, Lease
from distsgd.core.server.range_server import Keep
from distsgd.transport.framing import receive, send

__all__ = ["FOLLOWER", "Entry", "read_log", "write_log"]

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
    """Send what ``news`` gives, again and again; it waits a while where there is nothing.

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
