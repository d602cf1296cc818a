"""Find the folder of a dataset by what a user calls it: a name, a path or a URI."""

from __future__ import annotations

import os
from pathlib import Path

from distsgd.data.locations import SAMPLE, dataset_folder, expanded, imported_datasets
from distsgd.data.remote.addresses import is_uri
from distsgd.errors import DatasetError, UsageError
from distsgd.spelling import spelling

__all__ = ["dataset_name", "find_dataset"]


def dataset_name(dataset: object) -> str:
    """The name, path or URI of a dataset, as text.

    Raises:
        UsageError: it is something else, such as a table or an array.
    """
    if isinstance(dataset, str | os.PathLike):
        return os.fspath(dataset)
    raise UsageError(
        f"a dataset is given by name, path or URI, and this is a {type(dataset).__name__}",
        "Save its rows, as df.to_parquet('rows.parquet') or numpy.savez('rows.npz', x=x, y=y), and "
        "run `distsgd data import`",
    )


def find_dataset(dataset: object, *, trusted: bool = True) -> Path:
    """The folder of a dataset; of a remote one, the folder in the cache that stands for it.

    `distsgd.data.dataset.open_dataset` opens it as well.

    Args:
        dataset: "cifar10", "sample", a name given to `distsgd data import`, a path, or a URI.
        trusted: see `open_dataset`.

    Raises:
        DatasetError: there is none; says what to do.
        UsageError: it is neither.
        DistsgdError: it is a URI that cannot be used; see `find_remote`.
    """
    name = dataset_name(dataset)
    if is_uri(name):
        from distsgd.data.remote.remote_folder import find_remote  # loads pyarrow

        return find_remote(name, trusted=trusted)
    if name == "sample":
        return SAMPLE
    if name == "cifar10":
        folder = dataset_folder(name)
        if not folder.exists():
            embedded = spelling().given("dataset", "sample")
            raise DatasetError(
                "CIFAR-10 is not in the cache yet",
                f"Run `distsgd data fetch`, or use the embedded images: {embedded}",
            )
        return folder
    if name in imported_datasets():
        return dataset_folder(name)
    folder = expanded(name)
    if not (folder / "manifest.json").is_file():
        reason = "no such folder" if not folder.exists() else "it has no manifest.json"
        raise DatasetError(
            f"no dataset at {folder}: {reason}",
            f"{spelling().setting('dataset')} takes cifar10, sample, a name given to "
            "`distsgd data import`, and the path or URI of a dataset folder",
        )
    return folder
