"""The coordinator's decisions arrive as they were made, as far as a follower needs them."""

from __future__ import annotations

import socket
import threading
from collections import deque

import pytest
from support import PATIENCE

from distsgd.core.messages import INCARNATION, Applied, Dismiss, Diverged, Dropped, Grant, Lease
from distsgd.core.server import Keep
from distsgd.errors import ChannelClosed
from distsgd.transport.framing import Entry, read_log, write_log

LEASE = Lease(step=3, first=1, last=4, version=2, steps=2, replicas=5, serial=INCARNATION + 7)
UPDATE = Applied(
    3, 0, 4, 0.0, 0, 200, 0.0, ((0, LEASE), (2, Lease(3, 4, 5, 3))), ((1, 3, 0, 1),), False
)


def test_what_is_told_arrives() -> None:
    told: list[list[Entry]] = [
        [UPDATE, Grant(1, LEASE), Keep(4)],
        [],
        [Dropped(0, LEASE), Diverged(1, 0.0, 0.0), Dismiss(1)],
    ]
    left = deque(told)
    here, there = socket.socketpair()
    done = threading.Event()

    def news() -> list[Entry]:
        if not left:
            done.wait(PATIENCE)
            here.shutdown(socket.SHUT_RDWR)
        return left.popleft() if left else []

    def write() -> None:
        with here, pytest.raises(ChannelClosed):
            write_log(here, news)

    thread = threading.Thread(target=write)
    thread.start()
    with there:
        entries = read_log(there)
        found = [next(entries) for _ in told]
        done.set()
        with pytest.raises(ChannelClosed):
            next(entries)
    thread.join()
    assert found == [told[0], [], [Dropped(0, LEASE), Dismiss(1)]]
    serials = [lease.serial for _, lease in UPDATE.contributions]
    assert isinstance(found[0][0], Applied)
    assert [lease.serial for _, lease in found[0][0].contributions] == serials
