"""A dataset of arrays in memory; for workers, as shards in a folder that goes when they do."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats, Ints
from distsgd.data.columns import Columns
from distsgd.data.dataset import Dataset
from distsgd.data.locations import cache_folder
from distsgd.data.lock_file import LockFile, is_locked
from distsgd.data.manifest import Manifest, Shard
from distsgd.data.shards import label_dtype, write_dataset
from distsgd.data.split import Split
from distsgd.data.verified import FileChecksum
from distsgd.errors import system_error

__all__ = ["ArrayDataset", "ArraySplit", "written"]

_FILE = "memory.arrow"
"""A manifest names a file for every shard; this one does not exist."""


class ArraySplit(Split):
    """Examples in an array, which is not copied.

    Args:
        rows: shape (rows, features), float32 or float64, standardised.
        labels: shape (rows,), the number of each example's class.
        weights: of the examples, shape (rows,), or None.
    """

    def __init__(self, rows: NDArray[Any], labels: Ints, weights: Floats | None = None) -> None:
        self._unchecked = []
        self._rows = [rows]
        self._starts = np.array([0, len(rows)])
        self._labels = labels
        self._dtype = rows.dtype
        self._weights = weights

    @property
    def rows(self) -> NDArray[Any]:
        """The array."""
        return self._rows[0]

    def verify(self) -> tuple[FileChecksum, ...]:
        """There are no files to check."""
        return ()

    def batches(self) -> Iterator[tuple[NDArray[Any], Ints]]:
        """All examples at once, as views (rows, labels)."""
        yield self.rows, self._labels


class ArrayDataset(Dataset):
    """A dataset of arrays, which only a training in this process can read.

    Args:
        train: the training examples.
        classes: names of the classes, by number.
        test: the test examples; None for the training examples once more.
    """

    def __init__(
        self, train: ArraySplit, classes: tuple[str, ...], test: ArraySplit | None = None
    ) -> None:
        self.folder = Path()
        self._remote, self._stream = None, False
        rows, weights = train.rows, train.weights
        shard = Shard(_FILE, len(rows), rows.nbytes, "")
        self.manifest = Manifest(
            name="arrays",
            shape=rows.shape[1:],
            classes=classes,
            pixel_sums=(),
            train=(shard,),
            test=(),
            columns=Columns.as_they_are(rows.shape[1]),
            mean_weight=(
                None if weights is None else float(weights.sum(dtype=np.float64)) / len(rows)
            ),
        )
        self.train = train
        self.test = train if test is None else test


_FOLDER = "fits"


@contextmanager
def written(dataset: ArrayDataset) -> Iterator[Dataset]:
    """The same dataset in a private folder of the cache, which is removed at the end.

    What a process that was killed has left is removed by the next call.

    Args:
        dataset: with rows and weights of float32.

    Raises:
        StorageError: the folder cannot be written.
    """
    manifest, train = dataset.manifest, dataset.train
    assert isinstance(train, ArraySplit)
    labels = train.labels.astype(label_dtype(len(manifest.classes)))
    with _private_folder() as folder:
        try:
            write_dataset(
                folder, name=manifest.name, shape=manifest.shape, classes=manifest.classes,
                train=(train.rows, labels), test=(train.rows[:1], labels[:1]), shards=1,
                columns=manifest.columns, weights=train.weights,
            )  # fmt: skip
        except OSError as error:
            raise system_error(error, folder) from None
        yield Dataset(folder)


@contextmanager
def _private_folder() -> Iterator[Path]:
    """An empty folder that is removed at the end; its lock is held meanwhile."""
    home = cache_folder() / _FOLDER
    with ExitStack() as stack:
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            everyone = LockFile(home / "lock")
            everyone.acquire()
            try:
                _sweep(home)
                folder = home / secrets.token_hex(8)
                own = LockFile(home / f"{folder.name}.lock")
                own.acquire()
                stack.callback(_remove, own)
                folder.mkdir(mode=0o700)
            finally:
                everyone.release()
        except OSError as error:
            raise system_error(error, home) from None
        yield folder


def _sweep(home: Path) -> None:
    """Remove the folders of processes that died; the lock of all is held."""
    for path in home.glob("*.lock"):
        if not is_locked(path):
            _remove(LockFile(path))


def _remove(own: LockFile) -> None:
    shutil.rmtree(own.path.with_suffix(""), ignore_errors=True)
    own.path.unlink(missing_ok=True)
    own.release()
