"""Fingerprints of W: 64 bits that tell two W apart, in some microseconds.

The words of flat, padded W, times fixed odd multipliers, summed modulo 2**64. A word is a
little-endian integer of 64 bits: two float32 entries, or one of float64; an odd number of float32
entries is followed by a zero.

A multiplier is odd, so a change within one word, of one bit or of many, always changes the sum.
A change of several words leaves it as it was with a probability of 2**(z - 63), where z is the
number of low bits that are the same in all words: about 2**-64 for another computation, which
differs in last bits, and no use against changes of nothing but signs (two entries at odd places).

It is no cryptographic digest: another W with the same fingerprint is easily made on purpose.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats

__all__ = ["ChangedBit", "changed_bit", "fingerprint", "multipliers"]

_Words = NDArray[np.uint64]

_WORD = np.dtype("<u8")
_MASK = (1 << 64) - 1
_SEED = 0x5EED


class ChangedBit(NamedTuple):
    """One bit of W.

    Attributes:
        entry: its place in flat W, from 0.
        bit: its place in that entry, from 0 for the lowest bit of the mantissa.
    """

    entry: int
    bit: int


def fingerprint(weights: Floats) -> int:
    """The fingerprint of W.

    Args:
        weights: flat padded W, float32 or float64, contiguous.

    Returns:
        a number from 0 to 2**64 - 1.
    """
    words = _words(weights)
    return int(np.dot(words, multipliers(len(words))))


def changed_bit(found: int, expected: int, weights: Floats) -> ChangedBit | None:
    """The bit in which two W differ, if it is one.

    Args:
        found: the fingerprint of ``weights``.
        expected: that of the other.
        weights: flat padded W.

    Returns:
        the only bit of ``weights`` whose flip gives the other fingerprint; None if there is none,
        or several (of the highest bits of a word).
    """
    words = _words(weights)
    factors = multipliers(len(words))
    difference = np.uint64((expected - found) & _MASK)
    for bit in range(64):
        change = factors << np.uint64(bit)  # of a bit that is 0 and becomes 1
        one = (words >> np.uint64(bit)) & np.uint64(1) == 1
        change = np.where(one, np.uint64(0) - change, change)
        places = np.flatnonzero(change == difference)
        if len(places) > 1:  # of the highest bits the product keeps too few to tell words apart
            return None
        if len(places):
            if weights.itemsize == 8:
                return ChangedBit(int(places[0]), bit)
            return ChangedBit(2 * int(places[0]) + bit // 32, bit % 32)
    return None


def _words(weights: Floats) -> _Words:
    if weights.nbytes % 8:
        weights = np.append(weights, weights.dtype.type(0))
    return weights.view(_WORD)


@lru_cache(maxsize=4)
def multipliers(words: int) -> NDArray[np.uint64]:
    """The multipliers of this many words, of which longer W have the same first ones.

    Only the raw bits of PCG64 are used, which numpy keeps stable over its versions.
    """
    found: NDArray[np.uint64] = np.random.PCG64(_SEED).random_raw(words) | np.uint64(1)
    found.flags.writeable = False
    return found
