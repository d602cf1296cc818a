"""A job's dataset on the node where a worker runs, which may be another than the driver's."""

from __future__ import annotations

from pathlib import Path

from distsgd.data.dataset import Dataset
from distsgd.data.locations import REMOTE_SOURCE, find_dataset
from distsgd.data.remote.known_addresses import given
from distsgd.data.remote.uri import is_uri, parse_uri
from distsgd.engine.job import Job
from distsgd.errors import DatasetError

__all__ = ["dataset_here"]


def dataset_here(job: Job) -> Dataset:
    """The dataset at the driver's path, else by the name that the user gave.

    Raises:
        DatasetError: this node has none, or another of that name.
    """
    folder = Path(job.folder)
    remote = is_uri(job.dataset)
    if remote:
        given(parse_uri(job.dataset))  # to the driver
    if not (folder / "manifest.json").is_file():
        folder = find_dataset(job.dataset or job.folder)
    found = Dataset(
        folder, job.found, cache_limit=job.cache_limit, stream=bool(job.plan.shards),
        # In the driver's cache, which may be another than that of this process.
        remote=remote and (folder / REMOTE_SOURCE).exists(),
    )  # fmt: skip
    if job.digest and found.manifest.digest != job.digest:
        raise DatasetError(
            f"the dataset in {folder} is another than the driver's",
            "Fetch it anew, or copy the driver's",
        )
    return found
