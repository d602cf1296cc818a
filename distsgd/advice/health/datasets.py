"""The datasets in the cache: their manifests and the digests of their shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distsgd.advice.health.finding import Finding, ok, problem, warning
from distsgd.data.dataset import damaged_shards
from distsgd.data.locations import (
    RESERVED,
    SAMPLE,
    dataset_folder,
    imported_datasets,
    repair_hint,
)
from distsgd.data.manifest import Manifest, read_manifest
from distsgd.errors import DistsgdError

__all__ = ["datasets"]

_MOST_BYTES = 2**30
"""Bytes of shards that are hashed; a second or two."""


def datasets() -> Iterator[Finding]:
    """Every dataset of the cache, and the embedded images."""
    left = _MOST_BYTES
    try:
        cached = {name: dataset_folder(name) for name in (*RESERVED, *imported_datasets())}
    except DistsgdError:  # there is no cache folder, which is said elsewhere
        cached = {}
    for name, folder in {**cached, "sample": SAMPLE}.items():
        if not folder.exists():
            if name == "cifar10":
                yield warning(
                    "data", "CIFAR-10 is not in the cache yet",
                    "`distsgd data fetch`, or train on the embedded images: --dataset sample",
                )  # fmt: skip
            continue
        try:
            manifest = read_manifest(folder)
            size = sum(map(_size, _files(folder, manifest)))
            if size > left:
                yield ok(
                    "data",
                    f"{name}: {_whole(manifest, size)}, too large to be hashed here "
                    f"(`distsgd data verify --dataset {name}` does)",
                )
                continue
            left -= size
            damaged = damaged_shards(folder, manifest)
        except DistsgdError as error:
            yield problem("data", f"{name}: {error.problem}", error.hint or repair_hint(folder))
            continue
        if damaged:
            shard, why = damaged[0]
            more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
            yield problem(
                "data", f"{name}: the shard {shard.file} is {why}{more}", repair_hint(folder)
            )
        else:
            yield ok("data", f"{name}: {_whole(manifest, size)}, as its manifest says")


def _files(folder: Path, manifest: Manifest) -> list[Path]:
    return [folder / shard.file for shard in manifest.train + manifest.test]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _whole(manifest: Manifest, size: int) -> str:
    rows = manifest.rows("train") + manifest.rows("test")
    return f"{rows:,} examples in {size >> 20} MiB"
