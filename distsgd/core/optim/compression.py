"""Gradients in fewer bytes, with error feedback: what is not sent now is added to what comes next.

A codec is stateless: ``encode`` gives the bytes that travel, ``decode`` what the server sees, and
``cut`` the bytes for one range of the values, where several servers hold one each.
`ErrorFeedback` keeps, at the worker, the difference between the two.

The residuals of a fleet: what the error feedback of each worker has not sent yet.

A residual belongs to a worker, and to a number of its answers: error feedback adds it to the next
gradient of that worker. It follows from the journal, as each answer does, so that it is always the
same at one version of W:

- after an update, a worker's residual is that after the last of its answers that are in W;
- where a run is resumed, the new fleet shares the residuals of the old one out (`share`);
- a worker that takes the place of a lost one, within a session, starts from none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.core.messages import INCARNATION, incarnation_of, next_incarnation
from distsgd.core.portable import rounded

__all__ = [
    "CODECS",
    "Codec",
    "ErrorFeedback",
    "Residual",
    "Residuals",
    "make_codec",
    "share",
    "shared_out",
    "start_of_incarnation",
]


Payload = bytes | memoryview
_ALL = slice(0, None)


@dataclass(frozen=True)
class Codec:
    """Turns a gradient into bytes and back.

    Attributes:
        matrices: (rows, columns) of each matrix of W, one after another in the flat vector; a codec
            may treat rows apart.
        fraction: share of the values that `topk` sends.
        exact: whether sums have the same bits in any order, so on every machine.
    """

    matrices: tuple[tuple[int, int], ...]
    fraction: float = 1.0
    exact: bool = False

    @cached_property
    def values(self) -> int:
        """Length of flat W."""
        return sum(rows * columns for rows, columns in self.matrices)

    @cached_property
    def rows(self) -> int:
        """Rows of all matrices."""
        return sum(rows for rows, _ in self.matrices)

    @property
    def size(self) -> int:
        """Bytes of an encoded gradient."""
        raise NotImplementedError

    def encode(self, vector: Floats) -> bytes:
        """The bytes that travel for a vector of shape (values,)."""
        raise NotImplementedError

    def cut(self, payload: Payload, part: slice) -> bytes:
        """The bytes for the values from ``part.start`` to ``part.stop`` alone."""
        raise NotImplementedError

    def decode(self, payload: Payload, out: Floats, part: slice = _ALL) -> None:
        """Overwrite ``out``, the values of ``part``, with what the bytes for them stand for."""
        raise NotImplementedError


class Fp16(Codec):
    """Half precision, after division by the largest absolute value: 2 bytes a value."""

    @property
    def size(self) -> int:
        """See the class."""
        return 4 + 2 * self.values

    def encode(self, vector: Floats) -> bytes:
        """See the class."""
        scale = np.float32(np.abs(vector).max()) or np.float32(1)
        return scale.tobytes() + (vector / scale).astype("<f2").tobytes()

    def cut(self, payload: Payload, part: slice) -> bytes:
        """See the class."""
        return bytes(payload[:4]) + bytes(payload[4 + 2 * part.start : 4 + 2 * part.stop])

    def decode(self, payload: Payload, out: Floats, part: slice = _ALL) -> None:
        """See the class."""
        scale = np.frombuffer(payload, "<f4", 1)[0]
        np.multiply(np.frombuffer(payload, "<f2", offset=4), out.dtype.type(scale), out=out)


class TopK(Codec):
    """The largest values alone, with their positions: 8 bytes for each that is sent.

    Of values that are equally large, those that stand first are sent. Source: Aji and Heafield
    2017; Lin et al. 2018, "Deep gradient compression".
    """

    @property
    def _count(self) -> int:
        return max(1, round(self.fraction * self.values))

    @property
    def size(self) -> int:
        """See the class."""
        return 8 * self._count

    def encode(self, vector: Floats) -> bytes:
        """See the class."""
        sizes, count = np.abs(vector), self._count
        least = np.partition(sizes, self.values - count)[self.values - count]
        larger = np.flatnonzero(sizes > least)
        equal = np.flatnonzero(sizes == least)[: count - len(larger)]
        places = np.sort(np.concatenate([larger, equal]))
        return bytes(places.astype("<u4").tobytes() + vector[places].astype("<f4").tobytes())

    def cut(self, payload: Payload, part: slice) -> bytes:
        """See the class."""
        places, values = self._unpacked(payload)
        low, high = np.searchsorted(places, [part.start, part.stop])
        own = places[low:high] - np.uint32(part.start)
        return bytes(own.tobytes() + values[low:high].tobytes())

    def decode(self, payload: Payload, out: Floats, part: slice = _ALL) -> None:
        """See the class."""
        places, values = self._unpacked(payload)
        out[...] = 0
        out[places] = values

    def _unpacked(self, payload: Payload) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        count = len(payload) // 8
        places = np.frombuffer(payload, np.dtype("<u4"), count)
        return places, np.frombuffer(payload, np.dtype("<f4"), offset=4 * count)


class OneBit(Codec):
    """One bit a value, its sign, and two values for each row of W: the means of each sign.

    If sums are to be exact, values are first rounded to a grid on which they are: with n columns,
    n < 2**b, and sizes up to 2**e, to multiples of 2**(e + b - 51). That changes a mean by less
    than 2**(e + b - 51); it travels as a float32.

    Source: Seide et al. 2014, "1-bit stochastic gradient descent", section 3.1.
    """

    @property
    def size(self) -> int:
        """See the class."""
        return 8 * self.rows + -(-self.values // 8)

    def encode(self, vector: Floats) -> bytes:
        """See the class."""
        means, at = [], 0
        for shape in self.matrices:
            rows = vector[at : at + shape[0] * shape[1]].reshape(shape)
            means.append(self._means(rows))
            at += rows.size
        every = np.concatenate(means, axis=1).astype("<f4")
        return every.tobytes() + np.packbits(vector >= 0).tobytes()

    def _means(self, rows: Floats) -> Floats:
        """Of what is below 0, and of what is not, in each row; shape (2, rows)."""
        columns, positive = rows.shape[1], rows >= 0
        if self.exact:
            _, largest = math.frexp(np.abs(rows).max())
            rows = rounded(rows, 51 - largest - columns.bit_length())
        count = positive.sum(axis=1)
        high = np.where(positive, rows, 0).sum(axis=1) / np.maximum(count, 1)
        low = np.where(positive, 0, rows).sum(axis=1) / np.maximum(columns - count, 1)
        return np.stack([low, high])

    def cut(self, payload: Payload, part: slice) -> bytes:
        """See the class; the means of all rows go to everyone."""
        bits = np.unpackbits(np.frombuffer(payload, np.uint8, offset=8 * self.rows))
        return bytes(payload[: 8 * self.rows]) + np.packbits(bits[part]).tobytes()

    def decode(self, payload: Payload, out: Floats, part: slice = _ALL) -> None:
        """See the class."""
        means = np.frombuffer(payload, "<f4", 2 * self.rows).reshape(2, -1)
        low, high = np.repeat(means, self._lengths, axis=1)[:, part]
        bits = np.frombuffer(payload, np.uint8, offset=8 * self.rows)
        out[...] = np.where(np.unpackbits(bits, count=out.size), high, low)

    @cached_property
    def _lengths(self) -> NDArray[np.intp]:
        """Columns of each row."""
        rows, columns = np.array(self.matrices, dtype=np.intp).T
        return np.repeat(columns, rows)


CODECS: dict[str, type[Codec]] = {"fp16": Fp16, "topk": TopK, "onebit": OneBit}


def make_codec(
    spec: str, matrices: Sequence[tuple[int, int]], *, exact: bool = False
) -> Codec | None:
    """The codec of "none", "fp16", "onebit" or "topk:FRACTION"; None for "none".

    Args:
        spec: which.
        matrices: (rows, columns) of each matrix of W, in their order.
        exact: see `Codec`.

    Raises:
        ValueError: it is none of these.
    """
    name, colon, fraction = spec.partition(":")
    if spec == "none":
        return None
    if name not in CODECS or bool(colon) != (name == "topk"):
        raise ValueError(f"there is no compression {spec!r}")
    share = float(fraction) if colon else 1.0
    if not 0 < share <= 1:
        raise ValueError(f"{fraction} is no share of the values")
    return CODECS[name](tuple(matrices), share, exact)


class ErrorFeedback:
    """A codec with its memory of what has not been sent yet.

    What is left over is kept by the number of answers that the server has used. An answer that it
    has not used is therefore as if it had never been sent.

    Args:
        codec: how gradients are encoded.
        start: what is left over from before, shape (values,), in the dtype of the gradients.
        feedback: False forgets the error each time, to show what the feedback is good for.
        depth: how many answers may be used by the server before they are in W.
        serial: that of the first lease.
    """

    def __init__(
        self, codec: Codec, start: Floats, *, feedback: bool = True, depth: int = 1, serial: int = 0
    ) -> None:
        self._codec, self._feedback, self._depth = codec, feedback, depth
        self._left: dict[int, Floats] = {serial: start}

    def left(self, serial: int) -> Floats:
        """The residual after a number of answers, shape (values,).

        Raises:
            KeyError: that is too long ago, or still to come.
        """
        if serial not in self._left and serial % INCARNATION == 0:
            return np.zeros_like(next(iter(self._left.values())))
        return self._left[serial]

    def send(self, serial: int, vector: Floats, decoded: Floats) -> bytes:
        """Encode a gradient plus what was left of those before.

        Args:
            serial: how many answers have been used before, as in the lease.
            vector: shape (values,).
            decoded: overwritten with what the receiver will see.

        Returns:
            the bytes that travel.
        """
        total = self.left(serial) + vector
        payload = self._codec.encode(total)
        self._codec.decode(payload, decoded)
        left = total - decoded if self._feedback else np.zeros_like(total)
        for old in [old for old in self._left if not serial - self._depth <= old <= serial]:
            del self._left[old]
        self._left[serial + 1] = left
        return payload


class Residual(NamedTuple):
    """What one worker has not sent yet.

    Attributes:
        serial: of its next lease (`Lease.serial`).
        values: flat and padded, shape (parameters,); None for zeros.
    """

    serial: int
    values: Floats | None


Residuals = Mapping[int, Residual]
"""Worker -> its residual; a worker that is not in it has never answered."""


def share(residuals: Residuals, worker: int, workers: int) -> Residual:
    """The residual with which a worker of a new fleet starts.

    Args:
        residuals: of the old fleet.
        worker: a number; from ``workers`` on, of one that joins later.
        workers: how many the new fleet has at its start.
    """
    serial = residuals[worker].serial if worker in residuals else 0
    if serial % INCARNATION:
        serial = next_incarnation(serial)
    parts = [
        values
        for number, (_, values) in sorted(residuals.items())
        if values is not None and worker < workers and number % workers == worker
    ]
    if not parts:
        return Residual(serial, None)
    total = parts[0].copy()
    for values in parts[1:]:
        np.add(total, values, out=total)
    return Residual(serial, total)


def shared_out(residuals: Residuals, workers: int) -> dict[int, Residual]:
    """The residuals of all workers of a new fleet of a given size; see `share`."""
    known = sorted({*residuals, *(range(workers) if residuals else ())})
    return {worker: share(residuals, worker, workers) for worker in known}


def start_of_incarnation(known: Residual | None, serial: int) -> Residual:
    """The residual with which the process started that answers a lease.

    Args:
        known: of its worker, before the lease.
        serial: of the lease.
    """
    incarnation = incarnation_of(serial)
    if known is not None and incarnation_of(known.serial) == incarnation:
        return known
    return Residual(incarnation * INCARNATION, None)
