"""``distsgd data import``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from distsgd.cli.output import JsonFlag, count, print_json, say, show
from distsgd.cli.progress_bar import ProgressBar
from distsgd.errors import UsageError

__all__ = ["import_rows"]


def import_rows(
    source: Annotated[
        Path, typer.Argument(help="A .parquet, .csv or .npz file, or a folder of images by class.")
    ],
    name: Annotated[str, typer.Option(help="What --dataset will call it.")],
    test: Annotated[
        Path | None, typer.Option(help="A file of the test rows, if they are apart.")
    ] = None,
    test_share: Annotated[
        float, typer.Option(help="Share drawn for testing, if nothing says which rows are.")
    ] = 0.2,
    label: Annotated[str | None, typer.Option(help="Column, or array, of the classes.")] = None,
    image: Annotated[str | None, typer.Option(help="Column, or array, of the images.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="A column to leave out.")] = None,
    size: Annotated[str | None, typer.Option(help="Resize images: ROWSxCOLUMNS, as 32x32.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="What flat numbers are: CHANNELSxROWSxCOLUMNS, as 1x28x28.")
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header", help="Line 1 of a CSV file has names, or not; else found out."
        ),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of a CSV file, as latin-1. (default: by its mark, or UTF-8)")
    ] = None,
    shards: Annotated[
        int, typer.Option(min=1, max=1000, help="Training shards, at least; of 64 MiB at most.")
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of test rows.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset of that name.")] = False,
    json: JsonFlag = False,
) -> None:
    """Make a dataset of your own rows: Parquet, CSV, NPZ, or a folder of images by class.

    Rows that cannot be used are counted, and listed in rejected.csv in the folder of the dataset.

    Example: distsgd data import flowers.csv --name flowers --label species
    """
    from distsgd.data.importing.import_dataset import REJECTED, import_dataset
    from distsgd.data.importing.source import Wishes
    from distsgd.data.names import escaped, some_of

    rows_columns = _numbers(size, "--size", 2)
    wishes = Wishes(
        label=label,
        image=image,
        drop=tuple(drop or ()),
        size=(rows_columns[0], rows_columns[1]) if rows_columns else None,
        shape=_numbers(shape, "--shape", 3),
        header=header,
        encoding=encoding,
    )
    with ProgressBar(rows=True) as bar:
        found = import_dataset(
            source, name, test=test, test_share=test_share, seed=seed, shards=shards, force=force,
            wishes=wishes, progress=bar.update, say=bar.say,
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
        show(
            f"Left out as an index: {some_of(found.left_out)} (a name of its own would make it "
            "a feature)"
        )
    for notice in found.notices:
        say(f"note: {notice}")
    if found.rejected:
        show(f"{count(found.rejected)} rows were rejected; all are in {REJECTED} there, as")
        for line in found.first_rejected[:3]:
            show(f"  {line}")
    show(f"Train on it: distsgd train --dataset {found.name}")


def _numbers(text: str | None, flag: str, how_many: int) -> tuple[int, ...] | None:
    """3x32x32 as numbers."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != how_many or not all(re.fullmatch("0*[1-9][0-9]{0,8}", p) for p in parts):
        example = "32x32" if how_many == 2 else "3x32x32"
        raise UsageError(f"{flag} cannot be {text}", f"Give whole numbers, as {example}")
    return tuple(map(int, parts))
