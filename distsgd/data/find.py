"""Find the folder of a dataset by what a user calls it: a name, a path or a URI."""

from __future__ import annotations

import os
from pathlib import Path

from distsgd.data.locations import SAMPLE, dataset_folder, expanded, imported_datasets
from distsgd.data.remote.uri import is_uri
from distsgd.errors import DatasetError, UsageError

__all__ = ["dataset_name", "find_dataset"]


def dataset_name(dataset: object) -> str:
    """What was given as a dataset: a name, a path or a URI.

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


def find_dataset(dataset: str, *, given: bool = True) -> Path:
    """The folder of a dataset: "cifar10", "sample", a name it was imported by, a path, or a URI.

    Args:
        dataset: what names it.
        given: whether the user has given it, now and here. A URI that a file of a run gives is
            used only if the user has given its address before; see `remote.known_addresses`.

    Raises:
        DatasetError: there is none; says what to do.
        SourceError: it is a URI that the user has not given.
        UsageError: it is neither.
        DistsgdError: it is a URI that cannot be used, see `find_remote`.
    """
    dataset = dataset_name(dataset)
    if is_uri(dataset):
        from distsgd.data.remote.remote_folder import find_remote  # loads pyarrow

        return find_remote(dataset, given=given)
    if dataset == "sample":
        return SAMPLE
    if dataset == "cifar10":
        folder = dataset_folder(dataset)
        if not folder.exists():
            raise DatasetError(
                "CIFAR-10 is not in the cache yet",
                "Run `distsgd data fetch`, or take the embedded images: --dataset sample",
            )
        return folder
    if dataset in imported_datasets():
        return dataset_folder(dataset)
    folder = expanded(dataset)
    if not (folder / "manifest.json").is_file():
        what = "no such folder" if not folder.exists() else "it has no manifest.json"
        raise DatasetError(
            f"no dataset at {folder}: {what}",
            "--dataset takes cifar10, sample, a name given to `distsgd data import`, and the path "
            "or URI of a dataset folder",
        )
    return folder
