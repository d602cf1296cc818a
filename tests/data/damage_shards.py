"""A process of its own: opens a shard under every kind of damage and prints what came of it.

Arrow ends the whole process on some broken files, hence not in the process of the tests.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from distsgd.data.dataset import Dataset, verify_shards
from distsgd.errors import DatasetError


def damages(content: bytes, number: int) -> Iterator[bytes]:
    """The highest bit of every other byte flipped in turn; then random bits; then cuts."""
    chance = random.Random(5)
    flips = [(at, 7) for at in range(0, len(content), 2)]
    flips += [(chance.randrange(len(content)), chance.randrange(8)) for _ in range(number)]
    for at, bit in flips:
        damaged = bytearray(content)
        damaged[at] ^= 1 << bit
        yield bytes(damaged)
    for _ in range(number):
        yield content[: chance.randrange(len(content))]


def outcome(folder: Path) -> str:
    """What opening gives; whatever it is, reading and verifying must tell."""
    try:
        dataset = Dataset(folder)
    except DatasetError as error:
        opened = type(error).__name__
    else:
        opened = "opened"
        if not refuses(lambda: list(dataset.train.batches())):
            return "unnoticed"
    return opened if refuses(lambda: verify_shards(folder, MANIFEST)) else "unnoticed"


def refuses(read: Callable[[], object]) -> bool:
    try:
        read()
    except DatasetError:
        return True
    return False


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    MANIFEST = Dataset(folder).manifest
    shard = folder / MANIFEST.train[0].file
    whole, counts = shard.read_bytes(), Counter[str]()
    for damaged in damages(whole, 150):
        shard.unlink()  # another file, not other bytes below an open mapping
        shard.write_bytes(damaged)
        counts[outcome(folder)] += 1
    print(json.dumps(counts))
