"""Compare the ways to exchange a gradient and W of CIFAR-10 between two processes, on loopback.

    python scripts/channel_round_trip.py [ROUNDS]

The channels of the package stand beside Arrow Flight, and beside two limits: a message of 64 bytes
there and back over a Unix socket, and two copies of W. All ways take turns, a few exchanges at a
time, so that other work on the machine disturbs all alike. Takes about 20 seconds.
"""

from __future__ import annotations

import multiprocessing
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import ray
from harness.tables import Comparison, print_environment

from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease, Push
from distsgd.core.model import SlotLoss, initial_weights
from distsgd.on_ray.session import ray_session
from distsgd.transport.base import Channel, Work
from distsgd.transport.connections import SharedMemoryChannel, TcpChannel
from distsgd.transport.framing import Shape
from distsgd.transport.port import Port
from distsgd.transport.ray_calls import RayChannel, RayPort

WEIGHTS = initial_weights(0, 10, 3072, 1e-4, "float32")
GRADIENT = initial_weights(1, 10, 3072, 1e-2, "float32")
SHAPE = Shape(WEIGHTS.size, "float32", most_nodes=1, most_losses=2, whole=WEIGHTS.size)
LEASE = Lease(step=0, first=0, last=2, version=0)
LOSSES = (SlotLoss(2.3, 8, 64), SlotLoss(2.2, 9, 64))

TURN, PING = 25, 64  # exchanges of one way in a row; bytes of a small message
COPIES = "limit: two copies of W"
_SCHEMA = pa.schema([("values", pa.float32())])

Give = Callable[[Work | None], None]


class Answering:
    """A server that only answers with W; see `distsgd.transport.base.ServerPort`."""

    def __init__(self) -> None:
        self._give: dict[int, Give] = {}

    def exchange(self, worker: int, push: Push | None, size: int) -> Work | None:
        if push is not None:
            check(push.gradients[0], GRADIENT)
        return LEASE, WEIGHTS

    def submit(self, worker: int, push: Push | None, size: int) -> None:
        self._give[worker](self.exchange(worker, push, size))

    @contextmanager
    def attached(self, worker: int, give: Give) -> Iterator[None]:
        self._give[worker] = give
        yield

    def arrived(self, worker: int, incarnation: int) -> None:
        pass

    def lost(self, worker: int, incarnation: int) -> None:
        pass


def check(found: Floats, wanted: Floats) -> None:
    """Compare the first and the last number; all of them are compared once, in `main`."""
    if found[0] != wanted[0] or found[-1] != wanted[-1]:
        raise ValueError("the numbers received are not those sent")


def decode(payload: bytes, rows: int) -> Floats:
    raise ValueError("nothing is encoded here")


def batch_of(values: Floats) -> pa.RecordBatch:
    """The numbers where they are, without a copy."""
    array = pa.Array.from_buffers(pa.float32(), values.size, [None, pa.py_buffer(values)])
    return pa.RecordBatch.from_arrays([array], schema=_SCHEMA)


class FlightServer(flight.FlightServerBase):  # type: ignore[misc]
    """Answers each message of an exchange with W in the same form, while the exchange lasts."""

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        lease = np.array(LEASE, dtype="<i8").tobytes()
        if descriptor.command == b"batches":
            writer.begin(_SCHEMA)
        for chunk in reader:
            if chunk.data is None:
                check(np.frombuffer(chunk.app_metadata, np.float32), GRADIENT)
                writer.write_metadata(pa.py_buffer(WEIGHTS))
            else:
                check(chunk.data.column(0).to_numpy(), GRADIENT)
                writer.write_with_metadata(batch_of(WEIGHTS), lease)


class FlightChannel:
    """A worker's end: one streaming exchange for all of a training.

    Without middleware, and with the defaults of gRPC: larger frames and read chunks, and tuning for
    latency, changed the median by less than 3 %.
    """

    def __init__(self, location: str, form: bytes) -> None:
        self._client = flight.FlightClient(location)
        descriptor = flight.FlightDescriptor.for_command(form)
        self._writer, self._reader = self._client.do_exchange(descriptor)
        if form == b"batches":
            self._writer.begin(_SCHEMA)
        self._words = np.array([*LEASE, *np.ravel(LOSSES)], dtype="<f8").tobytes()

    def close(self) -> None:
        self._writer.close()
        self._client.close()

    def batches(self) -> Floats:
        """As record batches, with lease and losses as metadata."""
        self._writer.write_with_metadata(batch_of(GRADIENT), self._words)
        weights: Floats = self._reader.read_chunk().data.column(0).to_numpy()
        return weights

    def bare(self) -> Floats:
        """As metadata without a record batch, which saves Arrow's part of the work."""
        self._writer.write_metadata(pa.py_buffer(GRADIENT))
        return np.frombuffer(self._reader.read_chunk().app_metadata, np.float32)


def serve(connection: Connection, ping: socket.socket) -> None:
    """The server process. Echoes what the socket receives, until its other end is closed."""
    port = Port(Answering(), SHAPE, decode)
    arrow = FlightServer("grpc://127.0.0.1:0")
    connection.send((port.address, f"grpc://127.0.0.1:{arrow.port}"))
    buffer = bytearray(PING)
    while ping.recv_into(buffer):
        ping.sendall(buffer)
    arrow.shutdown()


def by_channel(channel: Channel) -> Callable[[], Floats]:
    """One exchange; the gradient lies where a worker computes it."""
    gradients = GRADIENT[None] if channel.buffer is None else channel.buffer[:1]
    gradients[...] = GRADIENT
    push = Push(LEASE, LOSSES, gradients)

    def exchange() -> Floats:
        channel.send(push)
        work = channel.receive()
        assert work is not None
        return work[1]

    return exchange


def by_ping(ping: socket.socket) -> Callable[[], Floats]:
    buffer = bytearray(PING)

    def exchange() -> Floats:
        ping.sendall(buffer)
        ping.recv_into(buffer)
        return WEIGHTS

    return exchange


def by_copy() -> Callable[[], Floats]:
    there, back = np.empty_like(GRADIENT), np.empty_like(WEIGHTS)

    def exchange() -> Floats:
        np.copyto(there, GRADIENT)
        np.copyto(back, WEIGHTS)
        return back

    return exchange


def measure(ways: dict[str, Callable[[], Floats]], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each exchange, by way; all take turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, exchange in ways.items():
            exchange()  # wakes the server, and warms the cache
            for _ in range(TURN):
                began = time.perf_counter_ns()
                weights = exchange()
                taken[name].append((time.perf_counter_ns() - began) / 1000)
                check(weights, WEIGHTS)
    return taken


def report(taken: dict[str, list[float]]) -> None:
    print(f"{SHAPE.parameters:,} float32 each way, {WEIGHTS.nbytes:,} bytes\n")
    table = Comparison("way", "µs", ours="exchange", peer="tcp", limit="two copies")
    for name, times in taken.items():
        table.row(name, times, taken["tcp"], taken[COPIES])


@contextmanager
def all_ways() -> Iterator[dict[str, Callable[[], Floats]]]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    ping, pong = socket.socketpair()
    server = spawn.Process(target=serve, args=(theirs, pong))
    server.start()
    pong.close()
    address, location = ours.recv()
    with ExitStack() as stack:
        stack.callback(server.join)
        stack.callback(ping.close)
        stack.enter_context(ray_session(cpus=2))
        actor = ray.remote(RayPort).remote(Answering(), WEIGHTS.nbytes, decode)
        batches = stack.enter_context(closing(FlightChannel(location, b"batches")))
        bare = stack.enter_context(closing(FlightChannel(location, b"bytes")))
        yield {
            "shm": by_channel(SharedMemoryChannel(address, 0, SHAPE)),
            "tcp": by_channel(TcpChannel(address, 1, SHAPE)),
            "flight: record batches": batches.batches,
            "flight: bytes": bare.bare,
            "ray": by_channel(RayChannel(actor, 2, WEIGHTS.nbytes)),
            "limit: 64 bytes over a Unix socket": by_ping(ping),
            COPIES: by_copy(),
        }


def main(rounds: int) -> None:
    print_environment()
    print(f"{rounds} rounds of {TURN}; ", end="")
    with all_ways() as ways:
        for exchange in ways.values():
            assert np.array_equal(exchange(), WEIGHTS)
        measure(ways, 4)
        report(measure(ways, rounds))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
