"""Import a user's own rows into the same shards as CIFAR-10, read once and in bounded memory."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from distsgd.data.atomic import Progress, Say, installed, locked_dataset
from distsgd.data.columns import PIXELS, Columns
from distsgd.data.importing.choose import open_source
from distsgd.data.importing.row_import import RowImport
from distsgd.data.importing.source import ImportOptions
from distsgd.data.locations import RESERVED, dataset_folder, expanded
from distsgd.data.shards import DEFAULT_SHARDS
from distsgd.errors import UsageError
from distsgd.spelling import spelling

__all__ = ["Imported", "import_dataset"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The result of an import.

    Attributes:
        dataset: path of the dataset folder.
        name: name of the dataset.
        train: number of training rows.
        test: number of test rows.
        shape: shape of an example.
        classes: names of the classes.
        scaled: whether the manifest says how columns became features.
        values: "uint8" for pixels and 256 steps, "float32" for standardised columns.
        weighted: whether the training rows have weights.
        rejected: number of rows that could not be used; all are in ``rejected.csv`` in the folder.
        first_rejected: the first ten of them, each with the reason.
        shards: number of training shards.
        digest: digest of the dataset.
        label: column, or array, of the classes; empty for a folder of images.
        features: columns, or arrays, that the rows are made of.
        left_out: columns that were taken for an index, and left out.
        notices: what the user should know about the columns, a line each.
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
    values: str = PIXELS
    weighted: bool = False
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
    options: ImportOptions | None = None,
    progress: Progress = lambda *_: None,
    say: Say = lambda _: None,
) -> Imported:
    """Import a dataset from Parquet, CSV, NPZ, or a folder of images by class.

    Rows keep their order. Images, and whole numbers from 0 to 255 that look like images, are kept
    as pixels, except that a range of small ones is stretched. Other numbers are standardised, and
    words become features of their own. The manifest says how.

    Args:
        source: file or folder; see `open_source`.
        name: name of the dataset, by which it can be opened.
        test: a file with the test rows, if the source does not say which they are.
        test_share: share of the rows drawn for the test split, if nothing says which they are.
        seed: seed of that draw.
        shards: least number of training shards; no shard is larger than 64 MiB.
        force: replace a dataset of that name.
        options: which columns are what, and how to read them.
        progress: receives the number of rows read.
        say: receives a line about each stage.

    Raises:
        UsageError: an argument cannot be used, or it is not clear which column is what.
        SourceError: the source cannot be read.
        DatasetError: its rows do not make a dataset.
        StorageError: the cache cannot be written.
    """
    _check(name, test_share, shards, seed)
    _refuse_to_replace(dataset_folder(name), force)
    options = options or ImportOptions()
    opened = open_source(expanded(source), expanded(test) if test else None, options)
    with locked_dataset(name, say) as target:
        _refuse_to_replace(target, force)  # again: another import may have ended in the meantime
        with (
            installed(target) as beside,
            closing(RowImport(opened, beside, test_share, seed, options)) as work,
        ):
            say("reading rows")
            work.read(progress)
            say("writing shards")
            manifest = work.write(name, shards)
    return Imported(
        dataset=str(target),
        name=manifest.name,
        train=manifest.rows("train"),
        test=manifest.rows("test"),
        shape=manifest.shape,
        classes=manifest.classes,
        scaled=manifest.columns is not None,
        rejected=work.rejected.count,
        first_rejected=tuple(work.rejected.first),
        shards=len(manifest.train),
        digest=manifest.digest,
        values=manifest.values,
        weighted=manifest.mean_weight is not None,
        label=opened.label,
        features=_with_words(opened.features, manifest.columns),
        left_out=opened.left_out,
        notices=tuple(work.notices),
    )


def _with_words(features: tuple[str, ...], columns: Columns | None) -> tuple[str, ...]:
    """The columns of the features, those of categories with their number of words."""
    if columns is None or len(columns.words) != len(features):
        return features
    return tuple(
        f"{name} ({len(words)} words)" if words else name
        for name, words in zip(features, columns.words, strict=True)
    )


def _check(name: str, test_share: float, shards: int, seed: int) -> None:
    how = spelling()
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise UsageError(
            f"{how.setting('name')} cannot be '{name}'",
            "Use letters, digits, '.', '_' and '-'; not " + " or ".join(RESERVED),
        )
    if not 0 < test_share < 1:
        raise UsageError(
            f"{how.setting('test_share')} cannot be {test_share:g}", "Give a share between 0 and 1"
        )
    if shards < 1:
        raise UsageError(f"{how.setting('shards')} cannot be {shards}", "Give 1 or more")
    if seed < 0:
        raise UsageError(f"{how.setting('seed')} cannot be {seed}", "Give 0 or more")


def _refuse_to_replace(target: Path, force: bool) -> None:
    if target.exists() and not force:
        raise UsageError(
            f"there is a dataset '{target.name}' in {target}",
            f"Use another {spelling().setting('name')}, or replace it: "
            f"{spelling().given('force', True)}",
        )
