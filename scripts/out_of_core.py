"""Compare a dataset that is four times as large as a node's cache with the same one in memory.

    python scripts/out_of_core.py [--source s3 http file] [--epochs N] [--rounds N] [--only TEXT]

CIFAR-10 four times over (200,000 images) lies in 64 shards in a store on the same machine: the
object store of the tests, or a folder. It is streamed with --shuffle shard, two shards mixed,
through a cache that holds a quarter of the training shards beside the test shard, which always
stays. Figures are images a second of the steps after the first epoch; each streamed run follows the
same run in memory, and must give the same bits.

The limit is what the cores of this machine could do if none ever waited: the processor time of the
steps in memory, and that of fetching, hashing and writing, the store's own included, for the three
quarters that the cache cannot hold. Takes half a minute a row.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from harness.tables import Comparison, print_environment

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from store_process import object_store

from distsgd.data.dataset import open_dataset
from distsgd.data.find import find_dataset
from distsgd.data.manifest import read_manifest
from distsgd.data.remote.remote_folder import RemoteFolder
from distsgd.data.shards import write_dataset
from distsgd.training import train
from distsgd.training.results import EpochRow, Reporter

COPIES, SHARDS, MIXED, SHARE = 4, 64, 2, 4
IMAGES = COPIES * 50_000
RUNS: dict[str, dict[str, Any]] = {
    "linear, inline": {"workers": 0},
    "linear, 1 worker": {"workers": 1},
    "linear, 2 workers, bsp": {"workers": 2},
    "linear, 2 workers, asp": {"workers": 2, "consistency": "asp"},
    "mlp:100, inline": {"workers": 0, "model": "mlp:100"},
    "mlp:100, 2 workers, bsp": {"workers": 2, "model": "mlp:100"},
}


class Warm(Reporter):
    """Images a second after the first epoch."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def epoch(self, row: EpochRow) -> None:
        self._seconds.append(row.seconds)

    @property
    def rate(self) -> float:
        return IMAGES * (len(self._seconds) - 1) / (self._seconds[-1] - self._seconds[0])


class Pair(NamedTuple):
    """Images a second."""

    memory: float
    streamed: float


def lay_out(there: Path) -> tuple[int, int]:
    """Write CIFAR-10 a few times over; returns the bytes of its training and of its test shards."""
    cifar = open_dataset("cifar10")
    rows, test = (
        tuple(np.concatenate(found) for found in zip(*split.batches(), strict=True))
        for split in (cifar.train, cifar.test)
    )
    there.mkdir(parents=True)
    manifest = write_dataset(
        there, name="cifar10", shape=cifar.manifest.shape, classes=cifar.manifest.classes,
        train=tuple(np.concatenate([part] * COPIES) for part in rows), test=test, shards=SHARDS,
    )  # fmt: skip
    return tuple(sum(one.size for one in manifest.shards(split)) for split in ("train", "test"))


@contextmanager
def address(source: str, bucket: Path) -> Iterator[str]:
    """The URI of the dataset, in a store that runs as long as this is entered."""
    there = bucket / "open" / "cifar"
    if source == "file":
        yield there.as_uri()
        return
    with object_store(bucket) as store:
        yield store.open("cifar") if source == "s3" else f"http://{store.address}/open/cifar"


@contextmanager
def an_empty_cache() -> Iterator[None]:
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, DISTSGD_CACHE=folder),
    ):
        yield


def cpu_seconds() -> float:
    """Processor time of this process, and of its children that have ended."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def cost_of_fetching(source: str, bucket: Path, room: int) -> float:
    """CPU seconds for all training shards once, the store's included."""
    spent = []
    for fetches in (False, True):  # starting the store takes processor time, too
        before = cpu_seconds()
        with an_empty_cache(), address(source, bucket) as uri:
            folder = find_dataset(uri)
            remote = RemoteFolder(folder, uri, room)
            for entry in read_manifest(folder).train if fetches else ():
                remote.cache.hold(entry).release()
        spent.append(cpu_seconds() - before)
    return spent[1] - spent[0]


def rate(dataset: str, epochs: int, settings: dict[str, Any]) -> tuple[float, str]:
    with tempfile.TemporaryDirectory() as folder:
        warm = Warm()
        result = train(
            dataset, epochs=epochs, reporter=warm, run_dir=Path(folder) / "run", **settings
        )
        return warm.rate, result.weights_sha256


def measure(source: str, bucket: Path, cache_bytes: int, epochs: int, run: dict[str, Any]) -> Pair:
    """The same run twice, in memory first."""
    shuffled = {**run, "shuffle": "shard", "shuffle_window": MIXED}
    memory, wanted = rate(str(bucket / "open" / "cifar"), epochs, shuffled)
    with an_empty_cache(), address(source, bucket) as uri:
        bound = {"cache_size": -(-cache_bytes // 2**20)}
        streamed, found = rate(uri, epochs, {**shuffled, **bound})
    if found != wanted and run.get("consistency") != "asp":
        raise SystemExit(f"error: {run} has other bits when it is streamed")
    return Pair(memory, streamed)


def limit(pair: Pair, run: dict[str, Any], fetching: float) -> float:
    """Images a second with all cores busy."""
    cores = len(os.sched_getaffinity(0))
    steps = IMAGES / pair.memory * min(cores, max(1, run["workers"]))
    return cores * IMAGES / (steps + fetching * (1 - 1 / SHARE))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--source", nargs="+", choices=("s3", "http", "file"), default=["s3"])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="runs whose names contain this")
    options = parser.parse_args()
    print_environment()
    with tempfile.TemporaryDirectory() as folder:
        bucket = Path(folder)
        size, test_size = lay_out(bucket / "open" / "cifar")
        room = size // SHARE + test_size
        for source in options.source:
            fetching = min(cost_of_fetching(source, bucket, room) for _ in range(3))
            print(f"{source}: {fetching:.2f} s of CPU to fetch all {size / 1e6:.0f} MB once\n")
            table = Comparison("run", "images/s", ours="streamed", peer="memory", limit="limit")
            for name, run in RUNS.items():
                if options.only not in name:
                    continue
                pairs = []
                for _ in range(options.rounds):
                    pairs.append(measure(source, bucket, room, options.epochs, run))
                    time.sleep(0.5)
                memory, streamed = zip(*pairs, strict=True)
                limits = [limit(pair, run, fetching) for pair in pairs]
                table.row(name, streamed, memory, limits)
            print()


if __name__ == "__main__":
    main()
