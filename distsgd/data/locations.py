"""Where things lie: the user's cache folder, or ``$DISTSGD_CACHE``, and the data folder."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import platformdirs

from distsgd.data.remote.uri import is_uri
from distsgd.errors import DatasetError, StorageError, UsageError

__all__ = [
    "REMOTE_SOURCE",
    "RESERVED",
    "RUN_NAME",
    "SAMPLE",
    "cache_folder",
    "dataset_folder",
    "dataset_name",
    "expanded",
    "find_dataset",
    "home_folder",
    "imported_datasets",
    "is_remote_copy",
    "mending",
]

RESERVED = ("cifar10", "sample")
"""Names of datasets that are not imported."""

REMOTE_SOURCE = "source.json"
"""Beside the manifest of a dataset that lies elsewhere: where."""

RUN_NAME = "DISTSGD_RUN_NAME"
"""A variable with the name of a run that is given no folder; in a job, the name of the job."""

SAMPLE = (Path(__file__).parent / "sample" / "manifest.json").resolve().parent
"""The embedded sample of CIFAR-10; some installers make links of the files of a package."""


def cache_folder() -> Path:
    """The folder of everything that can be fetched again.

    Raises:
        StorageError: this user has no home folder, and no variable names another.
    """
    return _own_folder("DISTSGD_CACHE", platformdirs.user_cache_path, "datasets")


def home_folder() -> Path:
    """The folder of all that cannot be made again: the user's data folder, or ``$DISTSGD_HOME``.

    Raises:
        StorageError: this user has no home folder, and no variable names another.
    """
    return _own_folder("DISTSGD_HOME", platformdirs.user_data_path, "runs and tokens")


def _own_folder(variable: str, default: Callable[[str], Path], what: str) -> Path:
    if chosen := os.environ.get(variable):
        return expanded(chosen)
    try:
        return default("distsgd")
    except RuntimeError:  # no HOME, and a user that the system does not know
        raise StorageError(
            f"there is no folder for {what}: HOME is not set, and this user has no home folder",
            f"Set HOME, or {variable} to a folder for {what}",
        ) from None


def expanded(path: str | Path) -> Path:
    """A path as a user writes it, with ~ for a home folder.

    Raises:
        UsageError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(
            f"{path} is in a home folder that cannot be found", "Write the path in full"
        ) from None


def dataset_folder(name: str) -> Path:
    """Where the fetched dataset ``name`` lies, or will; errors as `cache_folder`."""
    return cache_folder() / "datasets" / name


def imported_datasets() -> list[str]:
    """Names of the imported datasets in the cache."""
    try:
        found = cache_folder().glob("datasets/*/manifest.json")
    except StorageError:
        return []
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
        from distsgd.data.remote.remote_folder import find_remote

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


def is_remote_copy(folder: Path) -> bool:
    """Whether a folder is one of the cache's that stand for remote datasets.

    A folder elsewhere is a dataset of its own, whatever files it has: nothing is fetched for it,
    and no file around it is removed to make room.
    """
    with suppress(StorageError):
        ours = (cache_folder() / "remote").resolve()
        return folder.resolve().parent == ours and (folder / REMOTE_SOURCE).exists()
    return False


def mending(folder: Path) -> str:
    """What to do about a dataset that is damaged."""
    if is_remote_copy(folder):
        return f"Remove {folder}: it is fetched again when it is needed"
    if folder.parent == _cache_of_datasets() and folder.name not in RESERVED:
        return f"Import it anew: `distsgd data import SOURCE --name {folder.name} --force`"
    command = "distsgd data fetch --repair"
    if folder.resolve() == SAMPLE.resolve():
        command += " --dataset sample"
    elif folder.resolve().parent != _cache_of_datasets() or folder.name != "cifar10":
        command += f" --dataset {shlex.quote(str(folder))}"
    return f"Mend it: `{command}`"


def _cache_of_datasets() -> Path | None:
    """Where `dataset_folder` is; None without a home folder."""
    with suppress(StorageError):
        return dataset_folder("").resolve()
    return None
