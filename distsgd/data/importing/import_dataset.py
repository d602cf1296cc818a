"""A user's own rows into the same shards as CIFAR-10, read once and in bounded memory."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from distsgd.data.cifar10.fetch import DEFAULT_SHARDS, Say
from distsgd.data.importing.choose import open_source
from distsgd.data.importing.row_import import REJECTED, RowImport
from distsgd.data.importing.source import Wishes
from distsgd.data.installing import installed, sweep
from distsgd.data.locations import RESERVED, dataset_folder, expanded
from distsgd.data.remote.http import Progress
from distsgd.data.waiting_lock import waiting_lock
from distsgd.errors import UsageError, system_error

__all__ = ["REJECTED", "Imported", "import_dataset"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import came to.

    Attributes:
        dataset: the folder.
        name: for --dataset.
        train: training rows.
        test: test rows.
        shape: of an example.
        classes: names of the classes.
        scaled: whether the manifest has a scale of the columns.
        rejected: rows that could not be used; all are in ``rejected.csv`` in the folder.
        first_rejected: the first ten of them, each with why.
        shards: training shards.
        digest: of the dataset.
        label: the column, or array, of the classes; empty for a folder of images.
        features: columns, or arrays, that the rows are made of.
        left_out: columns that were taken for an index, and left out.
        notices: what a user should know of the columns.
    """

    dataset: str
    name: str
    train: int
    test: int
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    scaled: bool
    rejected: int
    first_rejected: tuple[str, ...]
    shards: int
    digest: str
    label: str = ""
    features: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def import_dataset(
    source: str | Path,
    name: str,
    *,
    test: str | Path | None = None,
    test_share: float = 0.2,
    seed: int = 0,
    shards: int = DEFAULT_SHARDS,
    force: bool = False,
    wishes: Wishes | None = None,
    progress: Progress = lambda *_: None,
    say: Say = lambda _: None,
) -> Imported:
    """Make a dataset of rows from Parquet, CSV, NPZ, or a folder of images by class.

    Rows keep their order. Whole numbers from 0 to 255 are taken as they are, but small ones that
    are no pixels are stretched; other numbers are put on 256 steps. The manifest has the scale.

    Args:
        source: file or folder; see `open_source`.
        name: of the dataset, for ``--dataset``.
        test: a file of the test rows, if the source does not say which they are.
        test_share: share of the rows drawn for the test split, where nothing says which they are.
        seed: of that draw.
        shards: training shards, at least; there are more if they were larger than 64 MiB.
        force: replace a dataset of that name.
        wishes: which columns are what.
        progress: told how many rows are read.
        say: told of each stage, in words.

    Raises:
        UsageError: a name or number cannot be used, or it is not clear which column is what.
        SourceError: the source cannot be read.
        DatasetError: it is not enough for a dataset.
        StorageError: the cache cannot be written.
    """
    _check(name, test_share, shards, seed)
    target = dataset_folder(name)
    _refuse_to_replace(target, force)
    opened = open_source(expanded(source), expanded(test) if test else None, wishes or Wishes())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with waiting_lock(target.with_name(f".{name}.lock"), say):
            _refuse_to_replace(target, force)  # again: another import may have ended by now
            sweep(target)
            with (
                installed(target) as beside,
                closing(RowImport(opened, beside, test_share, seed)) as work,
            ):
                say("reading rows")
                work.read(progress)
                say("writing shards")
                manifest = work.write(name, shards)
    except OSError as error:
        raise system_error(error, target.parent) from None
    return Imported(
        dataset=str(target),
        name=manifest.name,
        train=manifest.rows("train"),
        test=manifest.rows("test"),
        shape=manifest.shape,
        classes=manifest.classes,
        scaled=manifest.scale is not None,
        rejected=work.rejected.count,
        first_rejected=tuple(work.rejected.first),
        shards=len(manifest.train),
        digest=manifest.digest,
        label=opened.label,
        features=opened.features,
        left_out=opened.left_out,
        notices=tuple(work.notices),
    )


def _check(name: str, test_share: float, shards: int, seed: int) -> None:
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise UsageError(
            f"--name cannot be '{name}'",
            "Letters, digits, '.', '_' and '-'; not " + " or ".join(RESERVED),
        )
    if not 0 < test_share < 1:
        raise UsageError(f"--test-share cannot be {test_share:g}", "Give a share between 0 and 1")
    if shards < 1:
        raise UsageError(f"--shards cannot be {shards}", "Give 1 or more")
    if seed < 0:
        raise UsageError(f"--seed cannot be {seed}", "Give 0 or more")


def _refuse_to_replace(target: Path, force: bool) -> None:
    if target.exists() and not force:
        raise UsageError(
            f"there is a dataset '{target.name}' in {target}",
            "Take another --name, or give --force",
        )
