"""A job's dataset on the node where a worker runs, which may be another than the driver's."""

from __future__ import annotations

import platform
from pathlib import Path

from distsgd.data.dataset import Dataset
from distsgd.data.locations import find_dataset
from distsgd.errors import DatasetError
from distsgd.runtime.job import Job

__all__ = ["dataset_here"]


def dataset_here(job: Job) -> Dataset:
    """The dataset at the driver's path, else by the name that the user gave.

    Raises:
        DatasetError: this node has none, or another of that name; names the node.
    """
    folder = Path(job.folder)
    if not (folder / "manifest.json").is_file():
        try:
            folder = find_dataset(job.dataset or job.folder)
        except DatasetError as error:
            raise DatasetError(f"node {platform.node()}: {error.problem}", error.hint) from None
    found = Dataset(folder, job.found)
    if job.digest and found.manifest.digest != job.digest:
        raise DatasetError(
            f"node {platform.node()} has another dataset in {folder} than the driver",
            "Fetch it there anew, or copy the driver's",
        )
    return found
