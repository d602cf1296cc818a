"""A fingerprint shows every single changed bit, and which one it is."""

from __future__ import annotations

import numpy as np
import pytest

from distsgd.core.fingerprint import changed_bit, fingerprint, multipliers


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_each_bit_shows(dtype: str) -> None:
    weights = np.random.default_rng(0).normal(size=16).astype(dtype)
    words = weights.view("<u8")
    before, seen = fingerprint(weights), set()
    for word, multiplier in enumerate(multipliers(len(words)).tolist()):
        for bit in range(64):
            up = not int(words[word]) >> bit & 1
            words[word] ^= np.uint64(1 << bit)
            change = (fingerprint(weights) - before) % 2**64
            assert change == (multiplier << bit if up else -(multiplier << bit)) % 2**64 != 0
            if bit < 48:  # of higher bits the product keeps too few to tell them apart
                seen.add(change)
            words[word] ^= np.uint64(1 << bit)
    assert len(seen) == 48 * len(words) and fingerprint(weights) == before


def test_it_stays_what_it_is() -> None:
    assert f"{fingerprint(np.arange(16, dtype='float32')):016x}" == "0b6ca19e1dc00000"
    assert multipliers(3).tolist() == multipliers(5)[:3].tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_bit_is_named(dtype: str) -> None:
    weights = np.random.default_rng(1).normal(size=31).astype(dtype)
    before, entries = fingerprint(weights), weights.view(f"<u{weights.itemsize}")
    for entry, bit in ((0, 0), (7, 22), (30, 5), (12, 31)):
        entries[entry] ^= entries.dtype.type(1 << bit)
        assert changed_bit(fingerprint(weights), before, weights) == (entry, bit)
        weights[3] += 1  # now several differ
        assert changed_bit(fingerprint(weights), before, weights) is None
        weights[3] -= 1
        entries[entry] ^= entries.dtype.type(1 << bit)
    assert changed_bit(before, before, weights) is None
