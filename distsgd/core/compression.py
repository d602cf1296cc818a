"""Gradients in fewer bytes, with error feedback: what is not sent now is added to what comes next.

A codec is stateless: ``encode`` gives the bytes that travel, ``decode`` what the server sees.
`ErrorFeedback` keeps, at the worker, the difference between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distsgd.core.arrays import Floats

__all__ = ["CODECS", "Codec", "ErrorFeedback", "make_codec"]


@dataclass(frozen=True)
class Codec:
    """Turns a gradient into bytes and back.

    Attributes:
        classes: rows of W; a codec may treat them apart.
        fraction: share of the values that `topk` sends.
    """

    classes: int
    fraction: float = 1.0

    def encode(self, vector: Floats) -> bytes:
        """The bytes that travel for a vector of shape (parameters,)."""
        raise NotImplementedError

    def decode(self, payload: bytes | memoryview, out: Floats) -> None:
        """Overwrite ``out``, shape (parameters,), with what the bytes stand for."""
        raise NotImplementedError


class Fp16(Codec):
    """Half precision, after division by the largest absolute value: 2 bytes a value."""

    def encode(self, vector: Floats) -> bytes:
        """See the class."""
        scale = np.float32(np.abs(vector).max()) or np.float32(1)
        return scale.tobytes() + (vector / scale).astype("<f2").tobytes()

    def decode(self, payload: bytes | memoryview, out: Floats) -> None:
        """See the class."""
        scale = np.frombuffer(payload, "<f4", 1)[0]
        np.multiply(np.frombuffer(payload, "<f2", offset=4), out.dtype.type(scale), out=out)


class TopK(Codec):
    """The largest values alone, with their positions: 8 bytes for each that is sent.

    Of values that are equally large, those that stand first are sent. Source: Aji and Heafield
    2017; Lin et al. 2018, "Deep gradient compression".
    """

    def encode(self, vector: Floats) -> bytes:
        """See the class."""
        count = max(1, round(self.fraction * vector.size))
        chosen = np.sort(np.argsort(-np.abs(vector), kind="stable")[:count])
        return chosen.astype("<u4").tobytes() + vector[chosen].astype("<f4").tobytes()

    def decode(self, payload: bytes | memoryview, out: Floats) -> None:
        """See the class."""
        count = len(payload) // 8
        out[...] = 0
        out[np.frombuffer(payload, "<u4", count)] = np.frombuffer(payload, "<f4", offset=4 * count)


class OneBit(Codec):
    """One bit a value, its sign, and two values for each row of W: the means of each sign.

    Source: Seide et al. 2014, "1-bit stochastic gradient descent", section 3.1.
    """

    def encode(self, vector: Floats) -> bytes:
        """See the class."""
        rows = vector.reshape(self.classes, -1)
        positive = rows >= 0
        count = positive.sum(axis=1)
        high = np.where(positive, rows, 0).sum(axis=1) / np.maximum(count, 1)
        low = np.where(positive, 0, rows).sum(axis=1) / np.maximum(rows.shape[1] - count, 1)
        means = np.stack([low, high]).astype("<f4")
        return means.tobytes() + np.packbits(positive).tobytes()

    def decode(self, payload: bytes | memoryview, out: Floats) -> None:
        """See the class."""
        low, high = np.frombuffer(payload, "<f4", 2 * self.classes).reshape(2, -1, 1)
        bits = np.frombuffer(payload, np.uint8, offset=8 * self.classes)
        signs = np.unpackbits(bits, count=out.size).reshape(self.classes, -1)
        out.reshape(self.classes, -1)[...] = np.where(signs, high, low)


CODECS: dict[str, type[Codec]] = {"fp16": Fp16, "topk": TopK, "onebit": OneBit}


def make_codec(spec: str, classes: int) -> Codec | None:
    """The codec of "none", "fp16", "onebit" or "topk:FRACTION"; None for "none".

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
    return CODECS[name](classes, share)


class ErrorFeedback:
    """A codec with its memory of what has not been sent yet.

    Args:
        codec: how gradients are encoded.
        like: a vector of the shape and dtype of the gradients.
        feedback: False forgets the error each time, to show what the feedback is good for.
    """

    def __init__(self, codec: Codec, like: Floats, *, feedback: bool = True) -> None:
        self._codec, self._feedback = codec, feedback
        self.residual = np.zeros_like(like)

    def send(self, vector: Floats, decoded: Floats) -> bytes:
        """Encode a gradient plus what was left of those before.

        Args:
            vector: shape (parameters,).
            decoded: overwritten with what the receiver will see.

        Returns:
            the bytes that travel.
        """
        np.add(self.residual, vector, out=self.residual)
        payload = self._codec.encode(self.residual)
        self._codec.decode(payload, decoded)
        if self._feedback:
            np.subtract(self.residual, decoded, out=self.residual)
        else:
            self.residual[...] = 0
        return payload
