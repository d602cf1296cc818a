"""The folders of the user: the cache of datasets, and the data folder for runs and tokens."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import platformdirs

from distsgd.errors import StorageError, UsageError

__all__ = [
    "ARRAYS",
    "REMOTE_SOURCE",
    "RESERVED",
    "RUN_NAME",
    "SAMPLE",
    "arrays_among",
    "cache_folder",
    "dataset_folder",
    "expanded",
    "home_folder",
    "imported_datasets",
    "is_remote_copy",
    "repair_hint",
]

ARRAYS = "arrays-"
"""Prefix of the names of datasets made of arrays."""

RESERVED = ("cifar10", "sample")
"""Names of the built-in datasets, which no imported one may have."""

REMOTE_SOURCE = "source.json"
"""File beside the manifest of the local copy of a remote dataset; has its URI."""

RUN_NAME = "DISTSGD_RUN_NAME"
"""Environment variable with the default name of a run; in a job, the name of the job."""

SAMPLE = (Path(__file__).parent / "sample" / "manifest.json").resolve().parent
"""The embedded sample of CIFAR-10; resolved, as some installers link the files of a package."""


def cache_folder() -> Path:
    """The folder of all that can be fetched again: the user's cache, or ``$DISTSGD_CACHE``.

    Raises:
        StorageError: this user has no home folder, and no variable names another.
    """
    return _own_folder("DISTSGD_CACHE", platformdirs.user_cache_path, "datasets")


def home_folder() -> Path:
    """The folder of what cannot be fetched again: the user's data folder, or ``$DISTSGD_HOME``.

    Raises:
        StorageError: this user has no home folder, and no variable names another.
    """
    return _own_folder("DISTSGD_HOME", platformdirs.user_data_path, "runs and tokens")


def _own_folder(variable: str, default: Callable[[str], Path], what: str) -> Path:
    if chosen := os.environ.get(variable):
        return expanded(chosen)
    try:
        return default("distsgd")
    except RuntimeError:  # no HOME, and a user unknown to the system
        raise StorageError(
            f"there is no folder for {what}: HOME is not set, and this user has no home folder",
            f"Set HOME, or {variable} to a folder for {what}",
        ) from None


def expanded(path: str | Path) -> Path:
    """Expand the ~ of a path that a user has written.

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
    """The folder of a dataset in the cache, which may not exist; errors as `cache_folder`."""
    return cache_folder() / "datasets" / name


def imported_datasets() -> list[str]:
    """Names of the imported datasets in the cache."""
    try:
        found = cache_folder().glob("datasets/*/manifest.json")
    except StorageError:
        return []
    names = (path.parent.name for path in found)
    return sorted(name for name in names if name not in RESERVED and not name.startswith("."))


def arrays_among(names: Iterable[str]) -> list[str]:
    """The names of datasets made of arrays, which a checksum follows."""
    return [name for name in names if re.fullmatch(f"{ARRAYS}[0-9a-f]{{12}}", name)]


def is_remote_copy(folder: Path) -> bool:
    """Whether a folder of the cache is the local copy of a remote dataset.

    A folder elsewhere is a local dataset, whatever files it has: nothing is fetched for it, and no
    file around it is removed to free space.
    """
    with suppress(StorageError):
        ours = (cache_folder() / "remote").resolve()
        return folder.resolve().parent == ours and (folder / REMOTE_SOURCE).exists()
    return False


def repair_hint(folder: Path) -> str:
    """What to do about a damaged dataset, for errors."""
    if is_remote_copy(folder):
        return f"Remove {folder}; it is fetched again when it is needed"
    if folder.parent == _cache_of_datasets() and folder.name not in RESERVED:
        return f"Import it again: `distsgd data import SOURCE --name {folder.name} --force`"
    command = "distsgd data fetch --repair"
    if folder.resolve() == SAMPLE.resolve():
        command += " --dataset sample"
    elif folder.resolve().parent != _cache_of_datasets() or folder.name != "cifar10":
        command += f" --dataset {shlex.quote(str(folder))}"
    return f"Repair it: `{command}`"


def _cache_of_datasets() -> Path | None:
    """The parent of `dataset_folder`; None without a home folder."""
    with suppress(StorageError):
        return dataset_folder("").resolve()
    return None
