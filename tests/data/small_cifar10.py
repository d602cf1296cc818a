"""CIFAR-10 with the first fifth of each batch, and its own published checksums.

All that fetches, repairs and verifies does with it what it does with the whole, in a fifth of the
time. The embedded sample is a part of it. Run as a program, this is the command line in a world
where CIFAR-10 is so small.
"""

from __future__ import annotations

import pytest

from distsgd.data.cifar10.archive import BATCHES, ROWS

BATCH_ROWS = 2_000
TRAIN_ROWS = 5 * BATCH_ROWS
_MD5 = {
    "data_batch_1": "d4fe023942b61c24694d631485866cee",
    "data_batch_2": "5d5a5d3ed764e04ff12bdcc8d0871611",
    "data_batch_3": "c21052c2d3ccf2aa8aab32b7f93aa7de",
    "data_batch_4": "134dd5e4a72274327c4d88e754515c72",
    "data_batch_5": "39d1dc0e4551367f7da9edda21cf25e0",
    "test_batch": "5eb6620f4afdc74b4e6ab8872105cc25",
}


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Have the package take these for CIFAR-10."""
    for table, values in (
        (ROWS, {"train": TRAIN_ROWS, "test": BATCH_ROWS}),
        (BATCHES, _MD5),
    ):
        for name, value in values.items():
            patch.setitem(table, name, value)


if __name__ == "__main__":
    from distsgd.__main__ import main

    make_small(pytest.MonkeyPatch())
    main()
