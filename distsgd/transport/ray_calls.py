"""A channel of plain Ray actor calls: slow, but it works wherever Ray does.

By default, Ray carries arguments and results below 100 KiB within the call itself and all others
through its object store, which costs several times as much. W of CIFAR-10 has 121 KiB, so vectors
are split into chunks that fit, whatever Ray it is.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease, Message, Push, ResidualReport, ResidualRequest
from distsgd.core.model import SlotLoss
from distsgd.errors import ChannelClosed, DistsgdError
from distsgd.transport.base import Decode, Reply, ServerPort

__all__ = ["RayChannel", "RayPort", "chunk_count"]

_CHUNK_BYTES = 90_000


def chunk_count(vector_bytes: int) -> int:
    """Number of chunks for a vector of this many bytes."""
    return max(1, -(-vector_bytes // _CHUNK_BYTES))


def _cut(array: Floats) -> list[Floats]:
    return np.array_split(array.reshape(-1), chunk_count(array.nbytes))


def _joined(chunks: Sequence[Floats]) -> Floats:
    return np.concatenate(chunks) if len(chunks) > 1 else chunks[0]


def _sent(push: Push) -> list[Any]:
    return _cut(push.gradients) if push.encoded is None else [push.encoded]


class RayPort:
    """The server's end: packs and unpacks what `RayChannel` sends.

    Args:
        server: where the messages go.
        vector_bytes: bytes of flat W.
        decode: decodes compressed gradients into a number of rows.
    """

    def __init__(self, server: ServerPort, vector_bytes: int, decode: Decode) -> None:
        self._server, self._decode = server, decode
        self._dismissal = [None] * (1 + chunk_count(vector_bytes))
        self._latest: dict[int, int] = {}  # worker -> its incarnation

    def exchange(self, worker: int, incarnation: int, meta: Any, *chunks: Any) -> list[Any]:
        """Answer one call: the lease, then the chunks of W; all None when training is over.

        Late calls of an earlier incarnation are dismissed too, as they would end those of the
        current one.
        """
        latest = self._latest.get(worker, 0)
        if incarnation < latest:
            return self._dismissal
        if incarnation > latest:
            self._latest[worker] = incarnation
            self._server.arrived(worker, incarnation)
        sizes = [len(chunk) if isinstance(chunk, bytes) else chunk.nbytes for chunk in chunks]
        size = sum(sizes) + len(pickle.dumps(meta))
        with np.errstate(all="ignore"):  # the server finds what is not finite
            reply = self._server.exchange(worker, self._unpack(meta, chunks), size)
        if reply is None:
            return self._dismissal
        if isinstance(reply, ResidualRequest):
            return [reply, *self._dismissal[1:]]
        lease, weights = reply
        return [tuple(lease), *_cut(weights)]

    def _unpack(self, meta: Any, chunks: Sequence[Any]) -> Message | None:
        if meta is None:
            return None
        if isinstance(meta, ResidualRequest):
            return ResidualReport(meta.serial, _joined(chunks))
        lease, losses, nodes = meta
        found = tuple(SlotLoss(*loss) for loss in losses)
        if isinstance(chunks[0], bytes):
            return Push(Lease(*lease), found, self._decode(chunks[0], nodes), chunks[0])
        return Push(Lease(*lease), found, _joined(chunks).reshape(nodes, -1))


class RayChannel:
    """The worker's end. See `distsgd.transport.base.Channel`.

    Args:
        server: handle of the server's actor, whose ``exchange`` is that of a `RayPort`.
        worker: number of the worker on this end.
        vector_bytes: bytes of flat W.
        incarnation: counts the processes that have had this worker's number, from 1.
    """

    name = "ray"
    buffer: Floats | None = None
    descriptor: int | None = None

    def __init__(self, server: Any, worker: int, vector_bytes: int, incarnation: int = 1) -> None:
        self._worker, self._incarnation = worker, incarnation
        self._call: Any = None
        self._exchange = server.exchange.options(num_returns=1 + chunk_count(vector_bytes))

    def send(self, message: Message | None) -> None:
        """See `Channel.send`."""
        meta: Any = None
        sent: list[Any] = []
        if isinstance(message, ResidualReport):
            meta, sent = ResidualRequest(message.serial), _cut(message.residual)
        elif message is not None:
            meta = (
                tuple(message.lease),
                tuple((loss.loss, loss.correct, loss.examples) for loss in message.losses),
                len(message.gradients),
            )
            sent = _sent(message)
        self._call = self._exchange.remote(self._worker, self._incarnation, meta, *sent)

    def receive(self) -> Reply | None:
        """See `Channel.receive`."""
        try:
            answer = ray.get(self._call)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DistsgdError):
                raise error.cause from None
            raise
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
            raise ChannelClosed("the parameter server has gone") from None
        if answer[0] is None:
            return None
        if isinstance(answer[0], ResidualRequest):
            return answer[0]
        return Lease(*answer[0]), _joined(answer[1:])
