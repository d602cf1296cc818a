"""What can happen to the bytes of a file."""

from __future__ import annotations

import random
from collections.abc import Callable

Damage = Callable[[random.Random, bytes, bytes], bytes | None]
"""From what the file and another one held to what it holds now; None if it is gone."""


def flip_bits(chance: random.Random, content: bytes, _: bytes) -> bytes:
    damaged = bytearray(content)
    for _number in range(chance.choice((1, 1, 1, 2, 16))):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def zero_page(chance: random.Random, content: bytes, _: bytes) -> bytes:
    length = chance.choice((1, 64, 512, 4096))
    start = chance.randrange(len(content))
    return (content[:start] + bytes(length) + content[start + length :])[: len(content)]


def random_page(chance: random.Random, content: bytes, _: bytes) -> bytes:
    start = chance.randrange(len(content))
    return (content[:start] + chance.randbytes(64) + content[start + 64 :])[: len(content)]


DAMAGES: dict[str, Damage] = {
    "flipped bits": flip_bits,
    "cut short": lambda chance, content, _: content[: chance.randrange(len(content))],
    "appended": lambda chance, content, _: content + chance.randbytes(chance.randint(1, 5000)),
    "appended to itself": lambda chance, content, _: content * 2,
    "zeroed": zero_page,
    "overwritten": random_page,
    "empty": lambda *_: b"",
    "all zeros": lambda chance, content, _: bytes(len(content)),
    "another file's content": lambda chance, content, other: other,
    "gone": lambda *_: None,
}
