"""Where things lie: the user's cache folder, or ``$DISTSGD_CACHE``, and the data folder."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from distsgd.data.remote.uri import is_uri
from distsgd.errors import DatasetError, UsageError

__all__ = [
    "REMOTE_SOURCE",
    "RESERVED",
    "RUN_NAME",
    "SAMPLE",
    "cache_folder",
    "dataset_folder",
    "dataset_name",
    "find_dataset",
    "home_folder",
    "imported_datasets",
    "mending",
]

RESERVED = ("cifar10", "sample")
"""Names of datasets that are not imported."""

REMOTE_SOURCE = "source.json"
"""Beside the manifest of a dataset that lies elsewhere: where."""

RUN_NAME = "DISTSGD_RUN_NAME"
"""A variable with the name of a run that is given no folder; in a job, the name of the job."""

SAMPLE = Path(__file__).parent / "sample"
"""The embedded sample of CIFAR-10."""


def cache_folder() -> Path:
    """The folder of everything that can be fetched again."""
    chosen = os.environ.get("DISTSGD_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("distsgd")


def home_folder() -> Path:
    """The folder of all that cannot be made again: the user's data folder, or ``$DISTSGD_HOME``."""
    chosen = os.environ.get("DISTSGD_HOME")
    return Path(chosen).expanduser() if chosen else platformdirs.user_data_path("distsgd")


def dataset_folder(name: str) -> Path:
    """Where the fetched dataset ``name`` lies, or will."""
    return cache_folder() / "datasets" / name


def imported_datasets() -> list[str]:
    """Names of the imported datasets in the cache."""
    found = cache_folder().glob("datasets/*/manifest.json")
    names = (path.parent.name for path in found)
    return sorted(name for name in names if name not in RESERVED and not name.startswith("."))


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


def find_dataset(dataset: str) -> Path:
    """The folder of a dataset: "cifar10", "sample", a name it was imported by, a path, or a URI.

    Raises:
        DatasetError: there is none; says what to do.
        UsageError: it is neither.
        DistsgdError: it is a URI that cannot be used, see `find_remote`.
    """
    dataset = dataset_name(dataset)
    if is_uri(dataset):
        from distsgd.data.remote.remote_folder import find_remote

        return find_remote(dataset)
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
    if Path(dataset).name == dataset and (dataset_folder(dataset) / "manifest.json").is_file():
        return dataset_folder(dataset)
    folder = Path(dataset).expanduser()
    if not (folder / "manifest.json").is_file():
        what = "no such folder" if not folder.exists() else "it has no manifest.json"
        raise DatasetError(
            f"no dataset at {folder}: {what}",
            "--dataset takes cifar10, sample, a name given to `distsgd data import`, and the path "
            "or URI of a dataset folder",
        )
    return folder


def mending(folder: Path) -> str:
    """What to do about a dataset that is damaged."""
    if (folder / REMOTE_SOURCE).exists():
        return f"Remove {folder}: it is fetched again when it is needed"
    if folder.parent == dataset_folder("").resolve() and folder.name not in RESERVED:
        return f"Import it anew: `distsgd data import SOURCE --name {folder.name} --force`"
    command = "distsgd data fetch --repair"
    if folder.resolve() == SAMPLE.resolve():
        command += " --dataset sample"
    elif folder.resolve() != dataset_folder("cifar10").resolve():
        command += f" --dataset {folder}"
    return f"Mend it: `{command}`"
