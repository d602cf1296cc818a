"""The Unix socket: what is sent arrives, strangers are refused, deaths are noticed."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest

from distsgd.channel.base import Work
from distsgd.channel.framing import Shape
from distsgd.channel.unix_socket import UnixAddress, UnixSocketChannel, UnixSocketPort
from distsgd.core.messages import Lease, Push
from distsgd.core.slot_gradient import SlotLoss
from distsgd.errors import ChannelClosed

SHAPE = Shape(parameters=50_000, dtype="float64", most_nodes=3, most_losses=3, whole=50_000)
LEASE = Lease(step=7, first=0, last=3, version=7)


class Recording:
    """A server that keeps what it is pushed, and answers with its double."""

    def __init__(self) -> None:
        self.pushes: list[tuple[int, Push | None]] = []
        self.lost: list[int] = []
        self.sizes: list[int] = []
        self.noticed = threading.Event()

    def exchange(self, worker: int, push: Push | None, size: int) -> Work | None:
        self.sizes.append(size)
        copy = Push(push.lease, push.losses, push.gradients.copy()) if push else None
        self.pushes.append((worker, copy))
        if len(self.pushes) > 2:
            return None
        return LEASE, np.full(SHAPE.parameters, 0.5)

    def note_lost(self, worker: int) -> None:
        self.lost.append(worker)
        self.noticed.set()


@pytest.fixture
def server() -> Recording:
    return Recording()


@pytest.fixture
def port(server: Recording) -> Iterator[UnixSocketPort]:
    port = UnixSocketPort(server, SHAPE, server.note_lost, lambda payload, rows: np.zeros(0))
    yield port
    port.close()


def a_push() -> Push:
    losses = tuple(SlotLoss(0.1 * n, n, 64) for n in range(3))
    return Push(LEASE, losses, np.random.default_rng(0).standard_normal((2, SHAPE.parameters)))


def exchange(channel: UnixSocketChannel, push: Push | None) -> Work | None:
    channel.send(push)
    return channel.receive()


def test_what_is_sent_arrives(server: Recording, port: UnixSocketPort) -> None:
    channel, push = UnixSocketChannel(port.address, 4, SHAPE), a_push()
    work = exchange(channel, None)
    assert work is not None and work[0] == LEASE and (work[1] == 0.5).all()
    assert exchange(channel, push) is not None
    assert exchange(channel, push) is None
    (first, nothing), (_, received), _ = server.pushes
    assert (first, nothing) == (4, None)
    assert received is not None
    assert (received.lease, received.losses) == (push.lease, push.losses)
    assert np.array_equal(received.gradients, push.gradients)
    assert server.sizes[1] - server.sizes[0] == 3 * 24 + push.gradients.nbytes


@pytest.mark.parametrize("noise", [b"", b"GET / HTTP/1.1\r\n\r\n" * 4, bytes(36)])
def test_strangers_are_refused(server: Recording, port: UnixSocketPort, noise: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(20)
        stranger.connect(f"\0{port.address.name}")
        stranger.sendall(noise)
        stranger.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    assert server.pushes == [] and server.lost == []


def test_a_wrong_token_is_refused(server: Recording, port: UnixSocketPort) -> None:
    wrong = UnixAddress(port.address.name, bytes(32))
    with pytest.raises(ChannelClosed):
        exchange(UnixSocketChannel(wrong, 0, SHAPE), None)
    assert server.pushes == []


def test_a_death_is_noticed_at_once(server: Recording, port: UnixSocketPort) -> None:
    channel = UnixSocketChannel(port.address, 2, SHAPE)
    exchange(channel, None)
    channel.close()
    assert server.noticed.wait(10)
    assert server.lost == [2]


def test_an_impossible_size_ends_the_connection(server: Recording, port: UnixSocketPort) -> None:
    channel = UnixSocketChannel(port.address, 1, SHAPE)
    channel._connection.sendall(struct.pack("<7qIII", 0, 0, 1, 0, 1, 0, 0, 4_000_000_000, 1, 0))
    assert server.noticed.wait(10)
    assert server.pushes == []
    channel.close()


def test_nobody_there() -> None:
    with pytest.raises(ChannelClosed, match="does not listen"):
        UnixSocketChannel(UnixAddress("distsgd-nobody", bytes(32)), 0, SHAPE)


def test_the_token_is_not_shown(port: UnixSocketPort) -> None:
    assert port.address.token.hex() not in repr(port.address)
    assert repr(port.address.token) not in repr(port.address)
