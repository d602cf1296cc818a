"""Shared memory and TCP: what is sent arrives, strangers are refused, deaths are noticed."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import PATIENCE

from distsgd.core.messages import Lease, Message, Push, ResidualReport
from distsgd.core.model import SlotLoss
from distsgd.errors import ChannelClosed, RuntimeFailure
from distsgd.transport.base import Answer, Reply
from distsgd.transport.connections import SharedMemoryChannel, TcpChannel, connect_within_node
from distsgd.transport.framing import _PUSH, Shape
from distsgd.transport.handshake import PendingConnections, greet_server, greet_worker
from distsgd.transport.port import Address, Port

SHAPE = Shape(parameters=50_000, dtype="float64", most_nodes=3, most_losses=3, whole=70_000)
LEASE = Lease(step=7, first=0, last=3, version=7)
Channels = type[SharedMemoryChannel] | type[TcpChannel]
BOTH = pytest.mark.parametrize("kind", [SharedMemoryChannel, TcpChannel])


class Recording:
    """A server that keeps what it is pushed, and answers with a half."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, Message | None]] = []
        self.sizes: list[int] = []
        self.gone: list[int] = []
        self.came: list[tuple[int, int]] = []
        self.strangers: list[str] = []
        self.noticed = threading.Event()
        self._give: dict[int, Callable[[Reply | None], None]] = {}

    bell: int | None = None

    def rung(self) -> None:
        raise AssertionError("there is no team")

    def exchange(self, worker: int, message: Message | None, size: int) -> Answer | None:
        self.sizes.append(size)
        if isinstance(message, Push):
            message = message._replace(gradients=message.gradients.copy())
        self.messages.append((worker, message))
        if len(self.messages) > 2:
            return None
        return LEASE, np.full(SHAPE.parameters, 0.5)

    def submit(self, worker: int, message: Message | None, size: int) -> None:
        self._give[worker](self.exchange(worker, message, size))

    @contextmanager
    def attached(self, worker: int, give: Callable[[Reply | None], None]) -> Iterator[None]:
        self._give[worker] = give
        yield

    def refused(self, where: str) -> None:
        self.strangers.append(where)
        self.noticed.set()

    def arrived(self, worker: int, incarnation: int) -> None:
        self.came.append((worker, incarnation))

    def lost(self, worker: int, incarnation: int) -> None:
        self.gone.append(worker)
        self.noticed.set()


@pytest.fixture
def server() -> Recording:
    return Recording()


@pytest.fixture
def port(server: Recording) -> Iterator[Port]:
    port = Port(server, SHAPE, lambda payload, rows: np.full((rows, 2), len(payload), np.float64))
    yield port
    port.close()


def a_push() -> Push:
    losses = tuple(SlotLoss(0.1 * n, n, 64) for n in range(3))
    return Push(LEASE, losses, np.random.default_rng(0).standard_normal((2, SHAPE.parameters)))


def exchange(channel: SharedMemoryChannel | TcpChannel, push: Message | None) -> Reply | None:
    channel.send(push)
    return channel.receive()


@BOTH
def test_what_is_sent_arrives(kind: Channels, server: Recording, port: Port) -> None:
    channel, push = kind(port.address, 4, SHAPE), a_push()
    work = exchange(channel, None)
    assert work is not None and work[0] == LEASE and (work[1] == 0.5).all()
    assert exchange(channel, push) is not None
    assert exchange(channel, push) is None
    (first, nothing), (_, received), _ = server.messages
    assert (first, nothing) == (4, None)
    assert received is not None
    assert (received.lease, received.losses) == (push.lease, push.losses)
    assert np.array_equal(received.gradients, push.gradients)
    assert server.sizes[1] - server.sizes[0] == 3 * 24 + push.gradients.nbytes
    assert not server.gone, "it was dismissed, not lost"


def test_sums_that_are_computed_in_shared_memory_are_there(server: Recording, port: Port) -> None:
    channel, push = SharedMemoryChannel(port.address, 0, SHAPE), a_push()
    exchange(channel, None)
    assert channel.buffer is not None
    channel.buffer[:2] = push.gradients
    exchange(channel, push._replace(gradients=channel.buffer[:2]))
    received = server.messages[1][1]
    assert received is not None and np.array_equal(received.gradients, push.gradients)
    channel.close()


@pytest.mark.parametrize("refused", ["os.memfd_create", "os.ftruncate", "fcntl.fcntl"])
def test_a_system_without_shared_memory_is_served_by_tcp(
    refused: str, server: Recording, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old kernel, or a filter of system calls in a container."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(refused, refuse)
    with pytest.raises(RuntimeFailure, match=r"memfd_create is refused.*Use channel tcp"):
        connect_within_node(port.address, 0, SHAPE, shared=True)
    channel = connect_within_node(port.address, 0, SHAPE)
    assert channel.name == "tcp"
    exchange(channel, None)
    assert exchange(channel, a_push()) is not None and len(server.messages) == 2
    assert server.gone == [] == server.strangers
    channel.close()


@BOTH
@pytest.mark.parametrize("encoded", [b"", b"some bytes"])
def test_encoded_gradients(kind: Channels, encoded: bytes, server: Recording, port: Port) -> None:
    channel = kind(port.address, 0, SHAPE)
    exchange(channel, None)
    exchange(channel, a_push()._replace(encoded=encoded))
    received = server.messages[1][1]
    assert received is not None and received.encoded == encoded
    assert (received.gradients == len(encoded)).all()
    channel.close()


@BOTH
def test_a_report_has_all_of_w(kind: Channels, server: Recording, port: Port) -> None:
    channel, left = kind(port.address, 0, SHAPE), np.arange(SHAPE.whole, dtype=np.float64)
    exchange(channel, None)
    exchange(channel, ResidualReport(5, left))
    received = server.messages[1][1]
    assert isinstance(received, ResidualReport) and received.serial == 5
    assert np.array_equal(received.residual, left)
    channel.close()


def connected(address: Address, kind: Channels) -> socket.socket:
    if kind is TcpChannel:
        return socket.create_connection(address.tcp)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"\0{address.unix}")
    return connection


@BOTH
@pytest.mark.parametrize("noise", [b"", b"GET / HTTP/1.1\r\n\r\n" * 4, bytes(68)])
def test_strangers_are_refused(kind: Channels, noise: bytes, server: Recording, port: Port) -> None:
    with connected(port.address, kind) as stranger:
        stranger.settimeout(PATIENCE)
        with suppress(OSError):  # it may have been cut off by now
            stranger.sendall(noise)
            stranger.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):  # a reset is a refusal too, silence is none
            assert len(stranger.recv(1000)) <= 32, "more than the random bytes of the greeting"
            assert stranger.recv(1) == b""
    assert server.messages == [] and server.gone == []


@BOTH
def test_a_wrong_token_is_refused_and_told_once(
    kind: Channels, server: Recording, port: Port
) -> None:
    for _ in range(3):
        with pytest.raises(ChannelClosed):
            kind(replace(port.address, token=bytes(32)), 0, SHAPE)
    assert server.noticed.wait(PATIENCE)
    assert server.strangers == ["127.0.0.1" if kind is TcpChannel else "this node"]
    assert server.messages == []


def test_a_recorded_push_that_comes_again_is_refused(server: Recording, port: Port) -> None:
    """Somebody between the two has written down all that the worker has sent."""
    recorded = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as between:
        thread = threading.Thread(target=listen_in, args=(between, port.address.tcp, recorded))
        thread.start()
        channel = TcpChannel(replace(port.address, tcp=between.getsockname()[:2]), 0, SHAPE)
        exchange(channel, None)
        exchange(channel, a_push())
        channel.close()
        thread.join(PATIENCE)
    assert len(recorded) > SHAPE.parameters * 8 and len(server.messages) == 2
    server.noticed.clear()
    for _ in range(2):
        with socket.create_connection(port.address.tcp) as stranger, suppress(OSError):
            stranger.sendall(recorded)
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(1000):
                pass
    assert server.noticed.wait(PATIENCE)
    assert len(server.messages) == 2 and server.strangers == ["127.0.0.1"]


def listen_in(between: socket.socket, server: tuple[str, int], recorded: bytearray) -> None:
    """Hand on what comes, both ways, and keep what the worker says."""
    worker, _ = between.accept()
    with worker, socket.create_connection(server) as onward:

        def back() -> None:
            while found := onward.recv(65536):
                worker.sendall(found)

        thread = threading.Thread(target=back)
        thread.start()
        while found := worker.recv(65536):
            recorded.extend(found)
            onward.sendall(found)
        onward.shutdown(socket.SHUT_WR)
        thread.join(PATIENCE)


def test_strangers_who_stay_leave_room_for_workers(server: Recording, port: Port) -> None:
    with ExitStack() as open_ones:
        for _ in range(150):  # and say nothing
            open_ones.enter_context(socket.create_connection(port.address.tcp))
        channel = TcpChannel(port.address, 0, SHAPE)
        assert exchange(channel, None) is not None
        channel.close()


def test_who_draws_his_greeting_out_is_cut_off() -> None:
    """Byte by byte, each within the time that one may take."""
    over, sent = threading.Event(), list[int]()
    theirs, ours = socket.socketpair()

    def dribble() -> None:
        with suppress(OSError):
            while not over.wait(0.05):
                theirs.sendall(b"x")
                sent.append(1)

    drip = threading.Thread(target=dribble)
    with theirs, ours:
        leave = PendingConnections(seconds=0.5).enter(ours)
        drip.start()
        assert greet_worker(ours, bytes(32)) is None
        over.set()
        drip.join()
        assert len(sent) < 68, "it was cut off before it had said all"
        leave()


@BOTH
def test_a_false_server_is_refused(kind: Channels) -> None:
    """One that listens at the right place, and does not know the token."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        name = f"distsgd-{secrets.token_hex(8)}"
        unix.bind(f"\0{name}")
        unix.listen()
        listener = tcp if kind is TcpChannel else unix

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(bytes(32))
                connection.recv(1000)
                connection.sendall(bytes(32))

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ChannelClosed, match="not our parameter server"):
            kind(Address(name, tcp.getsockname()[:2], bytes(32)), 0, SHAPE)
        thread.join()


@BOTH
def test_a_death_is_noticed_at_once(kind: Channels, server: Recording, port: Port) -> None:
    channel = kind(port.address, 2, SHAPE)
    exchange(channel, None)
    channel.close()
    assert server.noticed.wait(PATIENCE)
    assert server.gone == [2]


@BOTH
def test_an_impossible_size_ends_the_connection(
    kind: Channels, server: Recording, port: Port
) -> None:
    channel = kind(port.address, 1, SHAPE)
    channel._connection.sendall(_PUSH.pack(0, 0, 1, 0, 1, 0, 0, 4_000_000_000, 1, 0))
    assert server.noticed.wait(PATIENCE)
    assert server.messages == []
    channel.close()


@BOTH
def test_nobody_there(kind: Channels) -> None:
    with pytest.raises(ChannelClosed, match="does not listen"):
        kind(Address(f"distsgd-{secrets.token_hex(8)}", ("127.0.0.1", 1), bytes(32)), 0, SHAPE)


def named_memory() -> set[str]:
    """Files of /dev/shm that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[-1] for line in lines if "/dev/shm/" in line}


def test_shared_memory_has_no_name(port: Port) -> None:
    before = named_memory()
    channel = SharedMemoryChannel(port.address, 0, SHAPE)
    assert named_memory() == before
    channel.close()


@BOTH
def test_a_server_may_end_while_workers_come(kind: Channels, server: Recording) -> None:
    for _ in range(20):
        port = Port(server, SHAPE, lambda payload, rows: np.zeros((rows, 2)))
        ending = threading.Thread(target=port.close)
        with connected(port.address, kind) as connection, suppress(ChannelClosed, OSError):
            ending.start()
            greet_server(connection, port.address.token, 0)
        ending.join(PATIENCE)
        assert not ending.is_alive()
        with pytest.raises(ChannelClosed):
            kind(port.address, 0, SHAPE)
    assert server.messages == [], "nobody has said anything"


def test_the_token_is_not_shown(port: Port) -> None:
    assert port.address.token.hex() not in repr(port.address)
    assert repr(port.address.token) not in repr(port.address)
