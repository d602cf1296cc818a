"""A fingerprint of W in 64 bits, cheap enough to be taken after every update.

The bits of flat padded W are read as 64-bit words w_i, and the fingerprint is the sum of m_i w_i
modulo 2**64, with fixed odd pseudorandom multipliers m_i. As they are odd, a change of one word
alone always shows, and as the sum is linear, the difference of two fingerprints tells which bit it
was; of the highest bits of a word the product keeps too few to tell words apart. It guards against
faults, not against a forger.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats

__all__ = ["fingerprint", "multipliers"]

_SEED = 0x5EED


@lru_cache(maxsize=4)
def multipliers(words: int) -> NDArray[np.uint64]:
    """The multipliers of this many words, of which longer W have the same first ones.

    Only the raw bits of PCG64 are used, which numpy keeps stable over its versions.
    """
    found: NDArray[np.uint64] = np.random.PCG64(_SEED).random_raw(words) | np.uint64(1)
    found.flags.writeable = False
    return found


def fingerprint(weights: Floats) -> int:
    """The fingerprint of W.

    Args:
        weights: flat padded W, shape (parameters,); its bytes are a multiple of 8.
    """
    words = weights.view("<u8")
    return int(np.dot(words, multipliers(len(words))))
