"""Where things lie: the user's cache folder, or ``$DISTSGD_CACHE``, and the data folder."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from distsgd.errors import DatasetError

__all__ = ["SAMPLE", "cache_folder", "dataset_folder", "find_dataset", "home_folder", "mending"]

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


def find_dataset(dataset: str) -> Path:
    """The folder of a dataset given as "cifar10", "sample" or a path.

    Raises:
        DatasetError: there is none; says what to do.
    """
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
    folder = Path(dataset).expanduser()
    if not (folder / "manifest.json").is_file():
        what = "no such folder" if not folder.exists() else "it has no manifest.json"
        raise DatasetError(
            f"no dataset at {folder}: {what}",
            "--dataset takes cifar10, sample, or the path of a dataset folder",
        )
    return folder


def mending(folder: Path) -> str:
    """What to do about a dataset that is damaged."""
    command = "distsgd data fetch --repair"
    if folder.resolve() == SAMPLE.resolve():
        command += " --dataset sample"
    elif folder.resolve() != dataset_folder("cifar10").resolve():
        command += f" --dataset {folder}"
    return f"Mend it: `{command}`"
